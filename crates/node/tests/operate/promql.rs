//! A part of PromQL: enough to see which series an expression asks for.

/// A series that an expression asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(crate) name: String,
    /// Labels and the values they may have, those of the scrape left out.
    pub(crate) labels: Vec<(String, Vec<String>)>,
}

/// Labels that Prometheus adds when it scrapes.
const SCRAPED: [&str; 2] = ["instance", "job"];

/// The series of ours, and of every process, that `expression` asks for.
pub(crate) fn selectors(expression: &str) -> Vec<Selector> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find(|letter: char| letter.is_ascii_alphabetic() || letter == '"') {
        rest = &rest[start..];
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted.split_once('"').expect("a string ends").1;
            continue;
        }
        let end = rest
            .find(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
            .unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = after;
        if !name.starts_with("rekindle_") && !name.starts_with("process_") {
            continue;
        }
        let mut labels = Vec::new();
        if let Some(matchers) = rest.strip_prefix('{') {
            let (matchers, after) = matchers.split_once('}').expect("matchers end");
            labels = matchers.split(',').filter_map(label).collect();
            rest = after;
        }
        found.push(Selector { name: name.to_owned(), labels });
    }
    found
}

/// `name="value"` or `name=~"one|other"`; none for labels of the scrape.
fn label(matcher: &str) -> Option<(String, Vec<String>)> {
    let (name, value) = matcher.split_once('=').expect("a matcher");
    if SCRAPED.contains(&name) {
        return None;
    }
    let values = value.trim_start_matches('~').trim_matches('"');
    Some((name.to_owned(), values.split('|').map(str::to_owned).collect()))
}

#[test]
fn an_expression_is_taken_apart() {
    let expression = r#"sum by (le) (rate(rekindle_a_bucket{instance=~"$instance",part="b"}[5m])) / process_c{job="rekindle"} > 0 or rekindle_d{code=~"e|f"}"#;
    let found = selectors(expression);
    let names: Vec<&str> = found.iter().map(|selector| selector.name.as_str()).collect();
    assert_eq!(names, ["rekindle_a_bucket", "process_c", "rekindle_d"]);
    assert_eq!(found[0].labels, [("part".to_owned(), vec!["b".to_owned()])]);
    assert_eq!(found[1].labels, []);
    assert_eq!(found[2].labels, [("code".to_owned(), vec!["e".to_owned(), "f".to_owned()])]);
}
