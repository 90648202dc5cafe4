//! The demo, as a newcomer goes through it.

use super::Chromium;
use crate::process::child::{Running, binary};

/// A chat line that brings a link.
const LINK: &str = "Please authorize the app by visiting: ";

pub async fn clicked() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let mut command = binary(["demo"]);
    command.env("TMPDIR", place.path());
    let mut demo = Running::start(command);
    demo.type_lines(&["/oauth"]).await;
    let link = demo.stdout.line(|line| Some(line.split_once(LINK)?.1.to_owned())).await;

    let chromium = Chromium::start().await;
    chromium.open(&link).await;
    chromium.picture("demo-1-provider").await;
    chromium.click("button[value=allow]").await;
    chromium.heading("One more step").await;
    chromium.picture("demo-2-one-more-step").await;
    let code = chromium.text("#confirmation-code").await;
    // What the page says to type is what the chat takes.
    let typed = chromium.text("code").await;
    assert_eq!(typed, format!("/oauth confirm {code}"));
    // A reload shows the same page.
    chromium.client.refresh().await.expect("a reload");
    chromium.heading("One more step").await;
    assert_eq!(chromium.text("#confirmation-code").await, code);
    // Nothing on it runs: no script, and none is allowed.
    let scripts = chromium.client.execute("return document.scripts.length", Vec::new()).await;
    assert_eq!(scripts.expect("a number"), 0);

    demo.type_lines(&[&typed, "/oauth token"]).await;
    let token = demo.stdout.line(|line| Some(line.split_once("Access token: ")?.1.to_owned()));
    assert!(!token.await.is_empty());
    // The page has done its work, and says so.
    chromium.client.refresh().await.expect("a reload");
    chromium.heading("All done").await;
    chromium.picture("demo-3-all-done").await;
    chromium.close().await;
    demo.type_lines(&["/quit"]).await;
    let ended = demo.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
}
