//! The few things that are read from the pages of this project. Not a parser of HTML: the pages
//! quote every attribute, and escape `<`, `>` and quotes in what they show.

/// The `csrf` field of the demo provider's form.
pub(super) fn csrf(html: &str) -> Option<&str> {
    tags(html)
        .find(|tag| tag.name() == "input" && tag.attribute("name") == Some("csrf"))?
        .attribute("value")
}

/// The code of the result page, as it is shown.
pub(super) fn confirmation_code(html: &str) -> Option<&str> {
    let element = tags(html).find(|tag| tag.attribute("id") == Some("confirmation-code"))?;
    Some(element.text.trim()).filter(|code| !code.is_empty())
}

/// The one heading.
pub(super) fn heading(html: &str) -> Option<&str> {
    tags(html).find(|tag| tag.name() == "h1").map(|tag| tag.text.trim())
}

/// A start or end tag.
struct Tag<'a> {
    /// The text between `<` and `>`.
    inside: &'a str,
    /// The text up to the next tag.
    text: &'a str,
}

fn tags(html: &str) -> impl Iterator<Item = Tag<'_>> {
    html.split('<')
        .skip(1)
        .filter_map(|rest| rest.split_once('>'))
        .map(|(inside, text)| Tag { inside, text })
}

impl<'a> Tag<'a> {
    fn name(&self) -> &'a str {
        self.inside.split_ascii_whitespace().next().unwrap_or_default()
    }

    fn attribute(&self, name: &str) -> Option<&'a str> {
        // Names and values take turns between the quotes.
        let mut parts = self.inside.split('"');
        while let (Some(before), Some(value)) = (parts.next(), parts.next()) {
            let found = before
                .trim_end()
                .strip_suffix('=')
                .and_then(|names| names.split_ascii_whitespace().next_back());
            if found == Some(name) {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &str = r#"<!doctype html><title>Allow?</title><h1>Allow this?</h1>
        <form method="post" action="/authorize">
        <input type="hidden" name="state" value="name=&#34;csrf&#34; value=&#34;no&#34;">
        <input type="hidden" name="scope" value="csrf">
        <input type="hidden" name="csrf" value="1700000000000.0123abcdef">
        <button name="decision" value="allow">Allow</button></form>"#;

    const RESULT: &str = r#"<html><head><style>h1 { margin: 0; }</style></head><body>
        <h1>Almost done</h1><p>One step is left.</p>
        <p class="code" id="confirmation-code">1234 5678</p>
        <code>/oauth confirm 1234 5678</code></body></html>"#;

    #[test]
    fn the_forms_csrf_is_found() {
        assert_eq!(csrf(FORM), Some("1700000000000.0123abcdef"));
        assert_eq!(csrf(RESULT), None);
        assert_eq!(csrf(r#"<input name="csrf">"#), None);
        assert_eq!(csrf(r#"<meta name="csrf" value="x">"#), None);
    }

    #[test]
    fn the_code_is_found() {
        assert_eq!(confirmation_code(RESULT), Some("1234 5678"));
        assert_eq!(
            confirmation_code("<b id=\"confirmation-code\">\n 87654321\n</b>"),
            Some("87654321")
        );
        assert_eq!(confirmation_code(FORM), None);
        assert_eq!(confirmation_code(r#"<p id="confirmation-code"></p>"#), None);
        assert_eq!(confirmation_code(r#"<p>id="confirmation-code"</p>"#), None);
    }

    #[test]
    fn the_heading_is_found() {
        assert_eq!(heading(FORM), Some("Allow this?"));
        assert_eq!(heading(RESULT), Some("Almost done"));
        assert_eq!(heading("<p>no heading</p>"), None);
    }

    #[test]
    fn rubbish_is_nothing() {
        for html in ["", "<", ">", "<>", "<<<>>>", "<input", "<input name=\"csrf\" value=\"x", "\""]
        {
            assert_eq!((csrf(html), confirmation_code(html)), (None, None), "{html}");
        }
    }
}
