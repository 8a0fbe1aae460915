//! The table inside a document that says more than the table.

use anyhow::{Context as _, Result};

const BEGIN: &str = "<!-- loadtest -->";
const END: &str = "<!-- /loadtest -->";

/// `document` with what stands between the marks replaced by `table`.
///
/// # Errors
/// The marks are not both there, in this order.
pub(crate) fn replace_table(document: &str, table: &str) -> Result<String> {
    let (before, rest) = document.split_once(BEGIN).with_context(|| format!("no {BEGIN} in the document"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("no {END} behind {BEGIN}"))?;
    Ok(format!("{before}{BEGIN}\n```text\n{}\n```\n{END}{after}", table.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::replace_table;

    #[test]
    fn only_the_marked_part_changes() {
        let once = replace_table("a\n<!-- loadtest -->old<!-- /loadtest -->\nb\n", "t\n").unwrap();
        assert_eq!(once, "a\n<!-- loadtest -->\n```text\nt\n```\n<!-- /loadtest -->\nb\n");
        assert_eq!(replace_table(&once, "t\n").unwrap(), once);
        assert!(replace_table("<!-- /loadtest --><!-- loadtest -->", "t").is_err());
    }
}
