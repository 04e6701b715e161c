//! Every relative link of a Markdown page leads to a file, and its fragment to a heading.

use std::path::Path;

use super::document::Document;
use super::{Finding, Workspace};

pub(crate) fn check(workspace: &Workspace, findings: &mut Vec<Finding>) {
    for page in &workspace.documents {
        for link in &page.links {
            if let Err(what) = follow(workspace, page, &link.text) {
                findings.push(Finding { file: page.path.clone(), line: link.line, what });
            }
        }
    }
}

fn follow(workspace: &Workspace, page: &Document, link: &str) -> Result<(), String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return Ok(());
    }
    let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
    let directory = page.path.parent().unwrap_or(Path::new(""));
    let target = if file.is_empty() { page.path.clone() } else { directory.join(file) };
    let found = workspace.root.join(&target).canonicalize().map_err(|_| format!("`{link}` leads nowhere"))?;
    let inner = found.strip_prefix(&workspace.root).map_err(|_| format!("`{link}` leaves the workspace"))?;
    let target_page = workspace.documents.iter().find(|document| document.path == inner);
    match target_page {
        Some(target_page) if !fragment.is_empty() => {
            let known = target_page.headings.iter().any(|heading| anchor(heading) == fragment);
            if known { Ok(()) } else { Err(format!("`{link}` names a heading that is not there")) }
        }
        Some(_) | None => Ok(()),
    }
}

/// The fragment by which a heading is linked.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heading_is_linked_without_its_punctuation() {
        assert_eq!(anchor("The life of a pause, step by step"), "the-life-of-a-pause-step-by-step");
    }
}
