//! The page at `/` in a browser: it streams, stops, keeps what was said, works by keyboard and on a phone.

use super::browser::{self, Browser};
use super::process::Server;
use super::toolchain;

#[test]
fn a_chat_by_keyboard() {
    let Some(name) = browser::find() else {
        // Says so, or fails.
        assert!(!toolchain::have(&["chromium"]));
        return;
    };
    let server = Server::start(&[]);
    let mut browser = Browser::start(name);
    let url = format!("http://{}/", server.address);
    browser.call("Page.navigate", serde_json::json!({ "url": url }));
    browser.wait("document.readyState === 'complete' && location.protocol === 'http:'");
    let own = |browser: &mut Browser| {
        let origin = format!("a request to http://{}", server.address);
        // What it asks of its own server, and the browser's advice.
        browser.complaints.retain(|complaint| {
            !complaint.starts_with(&origin) && !complaint.contains("\"level\":\"verbose\"")
        });
        assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    };
    for (width, phone) in [(1000, false), (360, true)] {
        browser.window(width, 640, phone, phone);
        let fits = "document.documentElement.scrollWidth <= innerWidth";
        assert_eq!(browser.value(fits), true, "{width}");
    }
    browser.value("at('most').value = 8; at('seed').value = 1; at('text').focus()");
    assert_eq!(browser.value("document.activeElement.id"), "text");
    for key in ["H", "i"] {
        browser.press(key);
    }
    browser.press("Enter");
    browser.wait("messages.length === 2 && answering === null");
    let said = browser.value("document.querySelector('article.assistant').textContent");
    assert!(said.as_str().is_some_and(|text| !text.is_empty()), "{said}");
    assert_eq!(browser.value("document.querySelector('article.user').textContent"), "Hi");
    // The next turn goes on from it; a long answer is stopped, and what there is of it stays.
    browser.value("at('most').value = 4000; at('text').value = 'More'; at('form').requestSubmit()");
    browser.wait(
        "answering !== null && document.querySelectorAll('article.assistant')[1].textContent.length > 5",
    );
    browser.value("at('stop').click()");
    browser.wait("answering === null");
    server.wait_for("lapidary_num_requests_running", 0.0);
    assert_eq!(browser.value("messages.length"), 4);
    browser.value("at('clear').click()");
    assert_eq!(browser.value("document.querySelectorAll('article').length + messages.length"), 0);
    own(&mut browser);
}
