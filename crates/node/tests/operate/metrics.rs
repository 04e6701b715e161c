//! The dashboard, the alert rules and the reference against the existing metrics.

use std::collections::BTreeSet;

use rekindle_metrics::{Metrics, Observed};

use crate::file;
use crate::promql::{Selector, selectors};

fn rendered() -> String {
    Metrics::new().render(&Observed::default())
}

/// True if a scrape of a new daemon has the series.
fn exists(text: &str, selector: &Selector) -> bool {
    let series: Vec<&str> = text
        .lines()
        .filter(|line| {
            line.strip_prefix(selector.name.as_str()).is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
        .collect();
    let has =
        |label: &str, value: &str| series.iter().any(|line| line.contains(&format!("{label}=\"{value}\"")));
    !series.is_empty()
        && selector.labels.iter().all(|(label, values)| values.iter().all(|value| has(label, value)))
}

fn missing(expressions: impl IntoIterator<Item = String>) -> Vec<String> {
    let text = rendered();
    let wanted: Vec<Selector> =
        expressions.into_iter().flat_map(|expression| selectors(&expression)).collect();
    assert!(wanted.len() > 10, "the file asks for something");
    wanted
        .iter()
        .filter(|selector| !exists(&text, selector))
        .map(|selector| format!("{selector:?}"))
        .collect()
}

#[test]
fn the_dashboard_shows_only_metrics_that_exist() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&file("packaging/grafana/rekindle.json")).unwrap();
    let mut ids = BTreeSet::new();
    let mut expressions = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            expressions.push(target["expr"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(missing(expressions), [""; 0]);
    let node = dashboard["templating"]["list"][1]["definition"].as_str().unwrap();
    assert_eq!(missing_names(node), [""; 0]);
}

fn missing_names(expression: &str) -> Vec<String> {
    let text = rendered();
    let selectors = selectors(expression);
    selectors.into_iter().filter(|selector| !exists(&text, selector)).map(|selector| selector.name).collect()
}

/// The names and expressions of the alert rules; `promtool` reads the whole of the file.
fn alerts() -> Vec<(String, String)> {
    let text = file("packaging/prometheus/alerts.yml");
    let values = |key: &str| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.trim().strip_prefix(key))
            .map(|value| value.trim().to_owned())
            .collect()
    };
    let (names, expressions) = (values("- alert:"), values("expr:"));
    assert_eq!(names.len(), expressions.len());
    names.into_iter().zip(expressions).collect()
}

#[test]
fn the_alerts_ask_only_for_metrics_that_exist() {
    assert_eq!(missing(alerts().into_iter().map(|(_, expression)| expression)), [""; 0]);
}

#[test]
fn each_alert_has_its_place_in_the_runbook() {
    let (rules, guide) = (file("packaging/prometheus/alerts.yml"), file("docs/operations.md"));
    for (name, _) in alerts() {
        assert!(guide.contains(&format!("\n### {name}\n")), "docs/operations.md says what to do at {name}");
        let runbook = format!("runbook: docs/operations.md#{}\n", name.to_lowercase());
        assert!(rules.contains(&runbook), "{name} names its place");
    }
    let told = guide.lines().filter(|line| line.starts_with("### Rekindle")).count();
    assert_eq!(told, alerts().len(), "the guide tells of no alert that is none");
}

#[test]
fn the_reference_names_each_metric_and_no_other() {
    let text = rendered();
    let families: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            format!("{name}{suffix}")
        })
        .collect();
    let guide = file("docs/operations.md");
    let told: BTreeSet<String> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split_once(['`', '{']))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.starts_with("rekindle_") || name.starts_with("process_"))
        .collect();
    assert_eq!(told, families);
}
