//! Every result page, reached as a person reaches it.

use fantoccini::Locator;
use sea_orm::{ConnectionTrait, Database};
use token_broker::demo::provider::{ScriptedAnswer, ScriptedEndpoint};
use token_broker::domain::bot::{Confirmation, ReturnUrl};
use token_broker_client::proto;

use super::Chromium;
use crate::harness::world::{authorize, bot, key};
use crate::harness::{Browser, World};
use crate::issuer::fake::Issuer;

const ALLOW: &str = "button[value=allow]";
const DENY: &str = "button[value=deny]";
const LINK: &str = "main a";

/// A world whose bots differ, and the browser of one person.
struct Scene {
    world: World,
    chromium: Chromium,
    subjects: usize,
}

impl Scene {
    async fn link(&mut self) -> proto::AuthorizeResponse {
        self.subjects += 1;
        let request = authorize(&format!("acme.rocket.chat/u{}", self.subjects));
        self.world.client().authorize(request).await.expect("a link").into_inner()
    }

    /// Opens a new link, which leads to the provider's page.
    async fn at_the_provider(&mut self) -> proto::AuthorizeResponse {
        let started = self.link().await;
        self.chromium.open(&started.authorization_url).await;
        started
    }

    fn script(&self, status: u16, error: &str) {
        let body = format!(r#"{{"error":"{error}"}}"#);
        self.world.provider.script(ScriptedEndpoint::Token, ScriptedAnswer::json(status, body));
    }

    /// The page is there; a picture of it is kept.
    async fn sees(&self, heading: &str) {
        self.chromium.heading(heading).await;
        let name = heading.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        self.chromium.picture(&format!("page-{name}")).await;
    }
}

pub async fn every_page() {
    let issuer = Issuer::start().await;
    issuer.break_path("/.well-known/openid-configuration", 503, "");
    let away = issuer.provider();
    let world = World::with(|setup| {
        let mut trusting = bot("trusting");
        trusting.confirmation = Confirmation::None;
        // Where the page may lead to: here, a page of the broker's own.
        let home = format!("{}welcome", setup.settings.public_url);
        trusting.return_urls = vec![ReturnUrl::parse(&home).expect("a URL")];
        setup.bots.push(trusting);
        setup.providers.push(away);
    })
    .await;
    let mut scene = Scene { world, chromium: Chromium::start().await, subjects: 0 };
    good_ends(&mut scene).await;
    bad_links(&mut scene).await;
    bad_redirects(&mut scene).await;
    troubles(&mut scene).await;
    scene.chromium.close().await;
}

async fn good_ends(scene: &mut Scene) {
    scene.at_the_provider().await;
    scene.chromium.click(ALLOW).await;
    scene.sees("One more step").await;

    scene.at_the_provider().await;
    scene.chromium.click(DENY).await;
    scene.sees("Nothing was shared").await;

    let mut request = authorize("u-trusting");
    let return_url = format!("{}/welcome", scene.world.http_url);
    request.options = Some(proto::AuthorizationOptions { return_url, ..Default::default() });
    let started = scene.world.client_of("trusting").authorize(request).await.expect("a link");
    scene.chromium.open(&started.into_inner().authorization_url).await;
    scene.chromium.click(ALLOW).await;
    scene.sees("All done").await;
    scene.chromium.click(LINK).await;
    scene.sees("There is nothing here").await;
}

async fn bad_links(scene: &mut Scene) {
    let unknown = format!("{}/oauth2/start/{}", scene.world.http_url, "0".repeat(32));
    scene.chromium.open(&unknown).await;
    scene.sees("This link is not known").await;

    let started = scene.link().await;
    let request = proto::CancelAuthorizationRequest { authorization_id: started.authorization_id };
    scene.world.client().cancel_authorization(request).await.expect("cancelled");
    scene.chromium.open(&started.authorization_url).await;
    scene.sees("This link no longer works").await;
}

async fn bad_redirects(scene: &mut Scene) {
    // Somebody else's browser began it.
    let started = scene.link().await;
    let redirect = Browser::new().redirect_of(&started.authorization_url, "allow").await;
    scene.chromium.open(redirect.as_str()).await;
    scene.sees("Another browser, or no cookie").await;
    scene.chromium.click(LINK).await;
    scene.chromium.click(ALLOW).await;
    scene.chromium.heading("One more step").await;

    // The provider refuses its own code; a reload finds the attempt used; a new start works.
    scene.script(400, "invalid_grant");
    scene.at_the_provider().await;
    scene.chromium.click(ALLOW).await;
    scene.sees("The provider did not take it").await;
    scene.chromium.client.refresh().await.expect("a reload");
    scene.sees("This page was used before").await;
    scene.chromium.click(LINK).await;
    scene.chromium.click(ALLOW).await;
    scene.chromium.heading("One more step").await;

    // A redirect that lacks its code.
    scene.at_the_provider().await;
    let there = scene.chromium.client.current_url().await.expect("a URL");
    let state = there.query_pairs().find(|(name, _)| name == "state").expect("a state").1;
    let lacking = format!("{}/oauth2/callback/acme?state={state}", scene.world.http_url);
    scene.chromium.open(&lacking).await;
    scene.sees("The answer cannot be used").await;
    scene.chromium.click(LINK).await;
    scene.chromium.click(ALLOW).await;
    scene.chromium.heading("One more step").await;
}

async fn troubles(scene: &mut Scene) {
    scene.script(400, "invalid_scope");
    scene.at_the_provider().await;
    scene.chromium.click(ALLOW).await;
    scene.sees("The provider did not play along").await;

    scene.script(401, "invalid_client");
    scene.at_the_provider().await;
    scene.chromium.click(ALLOW).await;
    scene.sees("This service is not set up rightly").await;

    let away = proto::GrantKey { provider: "fake".into(), ..key("u1") };
    let request = proto::AuthorizeRequest { key: Some(away), ..Default::default() };
    let started = scene.world.client().authorize(request).await.expect("a link").into_inner();
    scene.chromium.open(&started.authorization_url).await;
    scene.sees("The provider does not answer").await;

    // Somebody guesses in the chat, until the page's code is worth nothing.
    scene.at_the_provider().await;
    scene.chromium.click(ALLOW).await;
    scene.chromium.heading("One more step").await;
    let code = scene.chromium.text("#confirmation-code").await;
    let wrong = if code.starts_with('0') { "1" } else { "0" };
    for _ in 0..5 {
        let request = proto::ConfirmAuthorizationRequest {
            subject: format!("acme.rocket.chat/u{}", scene.subjects),
            code: format!("{wrong}{}", &code[1..]),
            ..Default::default()
        };
        scene.world.client().confirm_authorization(request).await.expect_err("wrong");
    }
    scene.chromium.client.refresh().await.expect("a reload");
    scene.sees("It did not work").await;

    let started = scene.link().await;
    let file = scene.world.folder.path().join("token-broker.db");
    let database = Database::connect(format!("sqlite://{}", file.display())).await;
    let database = database.expect("the file");
    let rename = "ALTER TABLE authorizations RENAME TO away";
    database.execute_unprepared(rename).await.expect("a statement");
    scene.chromium.open(&started.authorization_url).await;
    scene.sees("Not now").await;
    let back = "ALTER TABLE away RENAME TO authorizations";
    database.execute_unprepared(back).await.expect("a statement");
    // As the page says, a reload is enough.
    scene.chromium.client.refresh().await.expect("a reload");
    scene.chromium.click(ALLOW).await;
    scene.chromium.heading("One more step").await;
}

pub async fn small_and_dark() {
    let world = World::start().await;
    let dark = "--blink-settings=preferredColorScheme=0";
    let chromium = Chromium::with(&[dark]).await;
    chromium.client.set_window_size(500, 700).await.expect("a small window");
    // A subject may be long, and has no space to break at.
    let subject = format!("acme.rocket.chat/{}", "x".repeat(230));
    let started = world.client().authorize(authorize(&subject)).await.expect("a link");
    chromium.open(&started.into_inner().authorization_url).await;
    chromium.click(ALLOW).await;
    chromium.heading("One more step").await;
    chromium.picture("small-and-dark").await;
    let wide = "return document.documentElement.scrollWidth > window.innerWidth";
    let wide = chromium.client.execute(wide, Vec::new()).await.expect("a truth");
    assert_eq!(wide, false, "the page is wider than the screen");
    let scheme = "return matchMedia('(prefers-color-scheme: dark)').matches";
    let scheme = chromium.client.execute(scheme, Vec::new()).await.expect("a truth");
    assert_eq!(scheme, true, "the screen is not dark");
    let shown = chromium.client.find(Locator::Css("body")).await.expect("a body");
    let colour = shown.css_value("color").await.expect("a colour");
    // Light on dark, by the page's own `color-scheme`.
    assert!(colour.contains("255, 255, 255"), "{colour}");
    chromium.close().await;
}
