//! What a person sees, in a real browser and by real clicks: the demo from the first click to the
//! code, and every result page.
//!
//! Screenshots go to `target/screenshots`, for people to look at.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use libtest_mimic::Trial;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::harness::{tools, trial_with};

mod demo;
mod pages;

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::CHROMIUM];
    vec![
        trial_with(needs, "chromium::the_demo_from_the_first_click_to_the_code", demo::clicked),
        trial_with(needs, "chromium::every_result_page_by_clicking", pages::every_page),
        trial_with(needs, "chromium::a_page_fits_a_narrow_and_dark_screen", pages::small_and_dark),
    ]
}

/// The time that a page may take to be there.
const PATIENCE: Duration = Duration::from_secs(20);

/// Chromium with a profile of its own, driven by its WebDriver.
struct Chromium {
    client: Client,
    _profile: TempDir,
    driver: Child,
}

impl Chromium {
    async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With more command-line options.
    async fn with(options: &[&str]) -> Self {
        let driver = tools::find("chromedriver").expect("the harness has found it");
        let mut driver = Command::new(driver)
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Chromium is in its group, and goes with it.
            .process_group(0)
            .spawn()
            .expect("the driver starts");
        let mut lines = BufReader::new(driver.stdout.take().expect("a pipe")).lines();
        let port: u16 = loop {
            let line = lines.next_line().await.expect("a line").expect("it does not end");
            let told = line.split_once("started successfully on port ");
            if let Some((_, port)) = told {
                break port.trim_end_matches('.').parse().expect("a port");
            }
        };
        // What it prints later must not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let profile = tempfile::tempdir().expect("a temporary folder");
        let chromium = tools::find("chromium").expect("the harness has found it");
        let folder = format!("--user-data-dir={}", profile.path().display());
        // As root it has no sandbox, and without a network nothing to talk about in the background.
        let mut arguments = vec![
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--window-size=900,700",
            &folder,
        ];
        arguments.extend(options);
        let capabilities = json!({
            "goog:chromeOptions": {"binary": chromium, "args": arguments},
        });
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities.as_object().expect("an object").clone())
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .expect("a session");
        Self { client, _profile: profile, driver }
    }

    async fn open(&self, url: &str) {
        self.client.goto(url).await.expect("the page opens");
    }

    /// Waits for something on the page, and clicks on it.
    async fn click(&self, selector: &str) {
        let found = self.client.wait().at_most(PATIENCE).for_element(Locator::Css(selector)).await;
        found.unwrap_or_else(|error| panic!("{selector}: {error}")).click().await.expect("a click");
    }

    /// Waits until the page has this heading.
    async fn heading(&self, wanted: &str) {
        let xpath = format!("//h1[text()='{wanted}']");
        let there = self.client.wait().at_most(PATIENCE).for_element(Locator::XPath(&xpath)).await;
        if there.is_err() {
            panic!("no heading {wanted:?} in:\n{}", self.text("body").await);
        }
    }

    /// The text of an element.
    async fn text(&self, selector: &str) -> String {
        let found = self.client.find(Locator::Css(selector)).await;
        let found = found.unwrap_or_else(|error| panic!("{selector}: {error}"));
        found.text().await.expect("a text")
    }

    /// Keeps a picture of what is seen, for people.
    async fn picture(&self, name: &str) {
        let folder = screenshots();
        std::fs::create_dir_all(&folder).expect("a folder");
        let picture = self.client.screenshot().await.expect("a picture");
        // A blank page is smaller.
        assert!(picture.len() > 4_000, "{name}: {} bytes", picture.len());
        std::fs::write(folder.join(format!("{name}.png")), picture).expect("a file");
    }

    async fn close(self) {
        self.client.clone().close().await.expect("the session ends");
    }
}

/// Also of a test that failed half-way.
impl Drop for Chromium {
    fn drop(&mut self) {
        let driver = self.driver.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = driver.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

fn screenshots() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| tools::root().join("target")).join("screenshots")
}
