//! What becomes of a prompt: continued as it is, or put into the model's chat template.
//!
//! Instructions (`--system`) are a message of the role `system` where the template takes it. Gemma 2's refuses it, and
//! some templates drop it silently: then they come before the first user message, a blank line between, as Google's
//! documentation of Gemma asks for and Gemma 3's own template does.

use serde_json::Value as Json;

use super::chat::{ChatTemplate, Content, Message};
use crate::file::Result;

/// How a prompt is given to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptForm {
    /// As it is, after BOS.
    Plain,
    /// As the user's turn of the chat template.
    Chat,
}

impl PromptForm {
    /// The form of a prompt: what was asked for, else by what the model was tuned for.
    pub fn choose(raw: bool, chat: bool, instruction_tuned: bool) -> PromptForm {
        if chat || (instruction_tuned && !raw) { PromptForm::Chat } else { PromptForm::Plain }
    }
}

/// The prompt for `messages`, instructions before them, up to where the model's turn begins.
///
/// # Errors
/// [`file::Error::Template`](crate::file::Error::Template) if the template refuses the messages.
pub fn render(template: &ChatTemplate, system: Option<&str>, messages: &[Message]) -> Result<String> {
    render_with(template, system, messages, None)
}

/// The same with tools: see [`ChatTemplate::render_with`].
///
/// # Errors
/// As [`render`].
pub fn render_with(
    template: &ChatTemplate,
    system: Option<&str>,
    messages: &[Message],
    tools: Option<&Json>,
) -> Result<String> {
    let render = |messages: &[Message]| template.render_with(messages, tools, true);
    let Some(system) = system.map(str::trim).filter(|s| !s.is_empty()) else {
        return render(messages);
    };
    let mut with = Vec::with_capacity(messages.len() + 1);
    with.push(Message::new("system", system));
    with.extend_from_slice(messages);
    if let Ok(prompt) = render(&with)
        && render(messages).ok().as_ref() != Some(&prompt)
    {
        return Ok(prompt);
    }
    with.remove(0);
    match with.iter_mut().find(|m| m.role == "user") {
        Some(first) => {
            first.content = match std::mem::replace(&mut first.content, Content::Parts(Vec::new())) {
                Content::Text(text) => Content::Text(format!("{system}\n\n{text}")),
                Content::Parts(mut parts) => {
                    parts.insert(0, format!("{system}\n\n"));
                    Content::Parts(parts)
                }
            }
        }
        None => with.insert(0, Message::new("user", system)),
    }
    render(&with)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::text::SpecialTokens;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, &SpecialTokens::of(&[]))
    }

    #[test]
    fn instructions_go_where_the_template_takes_them() {
        let turns = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}";
        let refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}";
        let drops = "{% for m in messages if m.role != 'system' %}[{{ m.role }}:{{ m.content }}]{% endfor %}";
        let messages =
            [Message::new("user", "hi"), Message::new("assistant", "ho"), Message::new("user", "he")];
        let render = |source: &str, system| render(&template(source), system, &messages).unwrap();
        let plain = "[user:hi][assistant:ho][user:he]";
        assert_eq!(render(turns, None), plain);
        assert_eq!(render(turns, Some("  ")), plain);
        assert_eq!(render(turns, Some("Be brief.")), format!("[system:Be brief.]{plain}"));
        let folded = "[user:Be brief.\n\nhi][assistant:ho][user:he]";
        assert_eq!(render(&format!("{refuses}{turns}"), Some(" Be brief.\n")), folded);
        assert_eq!(render(drops, Some("Be brief.")), folded);
    }

    #[test]
    fn a_form_that_is_asked_for_is_taken() {
        use PromptForm::{Chat, Plain};
        let cases = [(false, false, false, Plain), (false, false, true, Chat), (true, false, true, Plain)];
        for (raw, chat, tuned, form) in cases.into_iter().chain([(false, true, false, Chat)]) {
            assert_eq!(PromptForm::choose(raw, chat, tuned), form, "{raw} {chat} {tuned}");
        }
    }
}
