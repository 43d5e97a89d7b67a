//! A conversation by lines, whoever reads and prints them: commands, messages of several lines, and what is told about
//! answers. Shared by `lapidary chat` and `lapidary-run`; what was said, and what of it still has room, is
//! [`Conversation`]'s business.

use std::io::{self, BufRead, Read};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Result;
use lapidary_runtime::text::{Answer, AnswerEnd, Conversation, ConversationError, Partner};
use lapidary_runtime::{Sampler, Session, one_line};

/// What a conversation needs of the command that holds it.
pub(crate) trait Host {
    /// While it lives, an answer may be broken off.
    type Work;

    /// The next line, asked for by `prompt`; nothing at the end.
    fn line(&mut self, prompt: &str) -> Result<Option<Line>>;
    /// The model.
    fn session(&mut self) -> &mut Session;
    /// Lines of times and sizes of the last answer; of none yet, zeros.
    fn stats(&self, last: Option<&Answer>) -> String;
    /// Fails if the logits are no numbers.
    fn check_numbers(&mut self) -> Result<()>;
    /// Writes to stdout.
    fn print(text: &str) -> Result<()>;
    /// Writes a line to stderr.
    fn note(label: &str, text: &str);
    /// An answer begins.
    fn begin() -> Self::Work;
    /// Breaks once it is to stop.
    fn flow(work: &Self::Work) -> ControlFlow<()>;
}

/// A line as it was read.
pub(crate) enum Line {
    /// Its end taken off; pasted text may have line ends within.
    Text(String),
    /// One that is refused, and why.
    Refused(&'static str),
    /// Ctrl-C at the prompt.
    #[allow(dead_code, reason = "only an editor of lines has it")]
    Abandoned,
}

/// The most bytes of a line: more than any context holds.
const MOST: u64 = 16 << 20;

impl Line {
    /// A line that is no text.
    pub(crate) const NOT_UTF8: Line = Line::Refused("the line is not UTF-8 text: it is left out");

    /// The next line of a file or a pipe; nothing at the end.
    pub(crate) fn read(input: &mut impl BufRead) -> io::Result<Option<Line>> {
        let mut line = Vec::new();
        if input.take(MOST).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if !line.ends_with(b"\n") && line.len() as u64 == MOST {
            loop {
                line.clear();
                if input.take(MOST).read_until(b'\n', &mut line)? == 0 || line.ends_with(b"\n") {
                    return Ok(Some(Line::Refused("the line has more than 16 MiB: it is left out")));
                }
            }
        }
        if line.ends_with(b"\n") {
            line.pop();
        }
        if line.ends_with(b"\r") {
            line.pop();
        }
        Ok(Some(String::from_utf8(line).map_or(Line::NOT_UTF8, Line::Text)))
    }
}

const PROMPT: &str = "> ";
/// The prompt within a message of several lines.
const MORE: &str = "| ";
/// What begins and ends a message of several lines.
const QUOTES: &str = "\"\"\"";

const HELP: &str = "\
/system TEXT  instructions for the model from here on; alone: none\n\
/reset        forget the conversation\n\
/save FILE    write the conversation's state to a file\n\
/load FILE    go on with the conversation of a file\n\
/stats        times and sizes of the last answer\n\
/help         this list\n\
/quit         leave (or Ctrl-D)\n\
//TEXT        the message /TEXT\n\
\"\"\"           begins and ends a message of several lines; so does \\ at the end of a line\n\
Ctrl-C        stop an answer\n";

/// What a line asks for.
#[derive(Debug, PartialEq)]
enum Asked<'a> {
    Nothing,
    Message(&'a str),
    System(&'a str),
    Reset,
    Save(&'a str),
    Load(&'a str),
    Stats,
    Help,
    Quit,
    /// A command that there is not, or not so.
    Unknown(&'a str),
}

/// What `text` asks for.
fn asked(text: &str) -> Asked<'_> {
    let text = text.trim();
    let Some(rest) = text.strip_prefix('/') else {
        return if text.is_empty() { Asked::Nothing } else { Asked::Message(text) };
    };
    let (word, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    match (word, after.trim()) {
        ("system", text) => Asked::System(text),
        ("reset" | "clear", "") => Asked::Reset,
        ("save", path) if !path.is_empty() => Asked::Save(path),
        ("load", path) if !path.is_empty() => Asked::Load(path),
        ("stats", "") => Asked::Stats,
        ("help" | "?", "") => Asked::Help,
        ("quit" | "exit" | "bye", "") => Asked::Quit,
        // `//text`, and paths.
        _ if rest.starts_with('/') => Asked::Message(rest),
        _ if word.contains('/') => Asked::Message(text),
        _ => Asked::Unknown(&text[..1 + word.len()]),
    }
}

/// Reads lines and answers them until the end.
///
/// # Errors
/// If lines cannot be read, or answers not be printed; what is wrong with one message is told and forgotten.
pub(crate) fn hold<H: Host>(
    host: &mut H,
    partner: &Partner<'_>,
    sampler: &mut Sampler,
    mut conversation: Conversation,
) -> Result<()> {
    let mut last = None;
    while let Some(message) = message(host)? {
        let said = match &message {
            Said::Whole(text) => Asked::Message(text),
            Said::Line(text) => asked(text),
            Said::Refused(why) => {
                H::note("error", why);
                Asked::Nothing
            }
        };
        match said {
            Asked::Nothing => {}
            Asked::Quit => break,
            Asked::Help => H::print(HELP)?,
            Asked::Stats => H::print(&host.stats(last.as_ref()))?,
            Asked::Reset => conversation.reset(host.session()),
            Asked::Save(path) => {
                match conversation.save(host.session(), *sampler.options(), Path::new(path)) {
                    Ok(()) => H::note("note", &format!("saved to {path}")),
                    Err(error) => H::note("error", &one_line(&error)),
                }
            }
            Asked::Load(path) => match conversation.load(host.session(), Path::new(path)) {
                Ok(notes) => {
                    if let Some(options) = notes.sampler {
                        *sampler = Sampler::new(options, host.session().program().plan.vocab)?;
                    }
                    let tokens = host.session().position();
                    H::note("note", &format!("loaded {tokens} tokens from {path}"));
                }
                Err(error) => H::note("error", &one_line(&error)),
            },
            Asked::System(text) => {
                conversation.system = Some(text.to_string()).filter(|t| !t.is_empty());
                let none = text.is_empty();
                H::note("note", if none { "no instructions from here on" } else { "instructions taken" });
            }
            Asked::Unknown(command) => {
                let known = "/system, /reset, /save, /load, /stats, /help, /quit; //TEXT says /TEXT";
                let command = command.escape_debug();
                H::note("error", &format!("unknown command `{command}`: there are {known}"));
            }
            Asked::Message(text) => {
                if let Some(answer) = turn(host, partner, sampler, &mut conversation, text)? {
                    last = Some(answer);
                }
            }
        }
    }
    Ok(())
}

/// Answers a message, unless it is refused.
fn turn<H: Host>(
    host: &mut H,
    partner: &Partner<'_>,
    sampler: &mut Sampler,
    conversation: &mut Conversation,
    text: &str,
) -> Result<Option<Answer>> {
    let prompt = match conversation.say(partner, host.session().context(), text) {
        Ok(prompt) => prompt,
        Err(error @ (ConversationError::Text(_) | ConversationError::TooLong { .. })) => {
            H::note("error", &one_line(&error));
            return Ok(None);
        }
        Err(error @ ConversationError::Run(_)) => return Err(error.into()),
    };
    tell_left_out::<H>(prompt.left_out);
    let mut failed = None;
    let work = H::begin();
    let mut on_text = |piece: &str| match H::print(piece) {
        Ok(()) => H::flow(&work),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    };
    let mut on_chunk = || H::flow(&work);
    let answer =
        conversation.answer(partner, host.session(), sampler, prompt, &mut on_text, &mut on_chunk)?;
    drop(work);
    if let Some(error) = failed {
        return Err(error);
    }
    H::print("\n")?;
    if let Err(error) = host.check_numbers() {
        H::note("error", &one_line(error.as_ref()));
    }
    tell_left_out::<H>(answer.left_out);
    match answer.end {
        AnswerEnd::EndOfText | AnswerEnd::StopText => {}
        AnswerEnd::Interrupted => H::note("note", "stopped"),
        AnswerEnd::Length => {
            H::note("note", &format!("cut after {} tokens (-n takes more)", partner.max_new));
        }
        AnswerEnd::Context => {
            let full = "cut: message and answer fill the context (--context takes more); /reset starts anew";
            H::note("note", full);
        }
    }
    Ok(Some(answer))
}

/// Says that turns were left out.
fn tell_left_out<H: Host>(turns: usize) {
    let oldest = match turns {
        0 => return,
        1 => "its oldest turn is".to_string(),
        n => format!("its {n} oldest turns are"),
    };
    H::note("note", &format!("the conversation outgrew the context: {oldest} left out"));
}

/// What one or several lines come to.
enum Said {
    /// A line, which may be a command.
    Line(String),
    /// A message for certain.
    Whole(String),
    Refused(&'static str),
}

/// The next message: a line and, where it asks for more, those after it; nothing at the end.
fn message<H: Host>(host: &mut H) -> Result<Option<Said>> {
    let first = match host.line(PROMPT)? {
        None => return Ok(None),
        Some(Line::Abandoned) => return Ok(Some(Said::Line(String::new()))),
        Some(Line::Refused(why)) => return Ok(Some(Said::Refused(why))),
        Some(Line::Text(line)) => line,
    };
    let quoted = first.trim_start().strip_prefix(QUOTES).map(str::to_string);
    let is_quoted = quoted.is_some();
    let mut text = quoted.unwrap_or(first);
    loop {
        let open = if is_quoted {
            match text.trim_end().strip_suffix(QUOTES) {
                Some(whole) => {
                    text.truncate(whole.len());
                    false
                }
                None => true,
            }
        } else if text.ends_with('\\') {
            text.pop();
            true
        } else {
            false
        };
        if !open {
            break;
        }
        match host.line(MORE)? {
            // What there is, is the message.
            None => break,
            Some(Line::Abandoned) => return Ok(Some(Said::Line(String::new()))),
            Some(Line::Refused(why)) => H::note("error", why),
            Some(Line::Text(line)) => {
                text.push('\n');
                text.push_str(&line);
            }
        }
    }
    let blank = text.trim().is_empty();
    Ok(Some(if is_quoted && !blank { Said::Whole(text.trim_matches('\n').into()) } else { Said::Line(text) }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_ask_for_what_they_say() {
        use Asked::*;
        for (line, expected) in [
            ("  ", Nothing),
            (" hello ", Message("hello")),
            ("//help me", Message("/help me")),
            ("//", Message("/")),
            ("/usr/bin/env python", Message("/usr/bin/env python")),
            ("/etc/passwd", Message("/etc/passwd")),
            ("/system  Be brief. ", System("Be brief.")),
            ("/system", System("")),
            ("/system a\nb", System("a\nb")),
            ("/reset", Reset),
            ("/save a b.state ", Save("a b.state")),
            ("/load x", Load("x")),
            ("/save", Unknown("/save")),
            ("/stats ", Stats),
            ("/?", Help),
            ("/bye", Quit),
            ("/nothing", Unknown("/nothing")),
            ("/nothing at all", Unknown("/nothing")),
            ("/", Unknown("/")),
            ("/help me", Unknown("/help")),
            ("a /quit", Message("a /quit")),
        ] {
            assert_eq!(asked(line), expected, "{line}");
        }
    }

    #[test]
    fn a_bad_line_is_refused_alone() {
        let long = vec![b'x'; 2 * MOST as usize + 5];
        let mut input = &[b"one\r\n\xff\n\ntwo\n", &long[..], b"\nthree"].concat()[..];
        let mut found = Vec::new();
        while let Some(line) = Line::read(&mut input).unwrap() {
            found.push(match line {
                Line::Text(text) => text,
                Line::Refused(why) => format!("!{}", why.split(' ').nth(2).unwrap()),
                Line::Abandoned => unreachable!("nobody is there"),
            });
        }
        assert_eq!(found, ["one", "!is", "", "two", "!has", "three"].map(String::from));
    }
}
