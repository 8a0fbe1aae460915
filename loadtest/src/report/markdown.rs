//! The table inside a document that says more than the table.

use anyhow::{Context as _, Result};

/// `document` with what stands between the marks `<!-- name -->` and `<!-- /name -->` replaced by `table`.
///
/// # Errors
/// The marks are not both there, in this order.
pub(crate) fn replace_table(document: &str, name: &str, table: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let (before, rest) =
        document.split_once(&begin).with_context(|| format!("no {begin} in the document"))?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("no {end} behind {begin}"))?;
    Ok(format!("{before}{begin}\n```text\n{}\n```\n{end}{after}", table.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::replace_table;

    #[test]
    fn only_the_marked_part_changes() {
        let once =
            replace_table("a\n<!-- loadtest -->old<!-- /loadtest -->\nb\n", "loadtest", "t\n").unwrap();
        assert_eq!(once, "a\n<!-- loadtest -->\n```text\nt\n```\n<!-- /loadtest -->\nb\n");
        assert_eq!(replace_table(&once, "loadtest", "t\n").unwrap(), once);
        assert!(replace_table("<!-- /loadtest --><!-- loadtest -->", "loadtest", "t").is_err());
    }
}
