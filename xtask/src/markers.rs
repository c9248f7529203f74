//! Generated text between two comments of a Markdown file: `<!-- NAME -->` and `<!-- /NAME -->`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The text before, between and after the comments.
fn parts<'t>(text: &'t str, name: &str) -> Option<[&'t str; 3]> {
    let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let first = text.find(&start)? + start.len();
    let last = first + text.get(first..)?.find(&end)?;
    Some([text.get(..first)?, text.get(first..last)?, text.get(last..)?])
}

pub fn current<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    parts(text, name).map(|[_, current, _]| current)
}

/// Replaces the text between the comments.
pub fn write(path: &Path, name: &str, new: &str) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let [before, _, after] =
        parts(&text, name).with_context(|| format!("{} has no <!-- {name} -->", path.display()))?;
    fs::write(path, [before, new, after].concat()).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_text_between_the_comments_changes() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        fs::write(&path, "# Title\n<!-- x -->\nold\n<!-- /x -->\nmore\n").unwrap();
        write(&path, "x", "| new |\n").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "# Title\n<!-- x -->\n| new |\n<!-- /x -->\nmore\n");
        assert_eq!((current(&text, "x"), current(&text, "y")), (Some("| new |\n"), None));
        assert!(write(&path, "y", "").is_err());
    }
}
