//! One HTML file that shows a plan or the report of a load. The template draws the same JSON that `--format json` prints, which is in the page:
//! what is shown cannot differ from it.

use serde::Serialize;

use crate::exit::{Exit, Failure};

/// The page without its data.
const TEMPLATE: &str = include_str!("page.html");
/// Where the data goes.
const DATA: &str = "@DATA@";

/// What a page shows.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Page<'a, T: Serialize> {
    /// A prediction.
    Plan {
        /// The prediction.
        plan: &'a T,
    },
    /// A load.
    Load {
        /// Its report.
        report: &'a T,
    },
}

/// The page as a text.
pub fn render<T: Serialize>(page: Page<'_, T>) -> Result<String, Failure> {
    let json = serde_json::to_string(&page).map_err(|e| Failure::new(Exit::Io, format_args!("cannot render the page: {e}")))?;
    // Names are untrusted: nothing of the data may end the element that it is in. These escapes are JSON's own.
    let json = json.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
    Ok(TEMPLATE.replacen(DATA, &json, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_cannot_leave_its_element() {
        let page = render(Page::Plan { plan: &"</script><script>alert(1)</script>@DATA@" }).unwrap();
        assert!(page.starts_with(crate::output::PAGE_MARK));
        assert!(page.contains("\\u003c/script>\\u003cscript>alert(1)"));
        assert_eq!(page.matches("</script>").count(), TEMPLATE.matches("</script>").count());
        assert_eq!(TEMPLATE.matches(DATA).count(), 1);
    }

    #[test]
    fn the_template_asks_for_nothing_from_the_network() {
        for outside in ["http://", "https://", "//cdn", "@import", "url("] {
            assert!(!TEMPLATE.contains(outside), "{outside}");
        }
    }
}
