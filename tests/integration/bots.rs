//! The bots of `bots/examples`, each in its language, against a running broker.

use std::process::Output;

use libtest_mimic::Trial;
use token_broker_client::proto;
use tokio::process::Command;

use crate::harness::world::{PROVIDER, api_key, bot};
use crate::harness::{Browser, World, tools, trial, trial_with};

#[expect(dead_code, reason = "its main is for the command line")]
#[path = "../../bots/examples/get_token.rs"]
mod get_token;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("bots::in_rust_get_a_link_and_then_a_token", in_rust),
        trial_with(&[tools::PYTHON], "bots::in_python_get_a_link_and_then_a_token", in_python),
        trial_with(&[tools::NODE], "bots::in_node_get_a_link_and_then_a_token", in_node),
        trial("bots::are_what_the_readme_shows", shown),
    ]
}

/// Has the user follow the link that a bot printed.
async fn consented(world: &World, printed: &str) {
    let link = printed.strip_prefix("Open ").unwrap_or_else(|| panic!("no link: {printed:?}"));
    let page = Browser::new().allow(link.trim()).await;
    let request = proto::ConfirmAuthorizationRequest {
        subject: "u1".into(),
        code: page.confirmation_code().expect("a code"),
        ..Default::default()
    };
    world.client().confirm_authorization(request).await.expect("a grant");
}

async fn in_rust() {
    let world = World::start().await;
    let mut client = world.client();
    let link = get_token::token_or_link(&mut client, PROVIDER, "u1").await.expect("a link");
    consented(&world, &link).await;
    let token = get_token::token_or_link(&mut client, PROVIDER, "u1").await.expect("a token");
    assert_eq!(token, world.token("u1").await);
    let refused = get_token::token_or_link(&mut client, "nowhere", "u1").await.expect_err("none");
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
}

async fn in_python() {
    let python = tools::python().expect("the harness has found it");
    let generated = tempfile::tempdir().expect("a temporary folder");
    let out = generated.path().display();
    let made = Command::new(&python)
        .args(["-m", "grpc_tools.protoc", "-I", "proto"])
        .arg(format!("--python_out={out}"))
        .arg(format!("--grpc_python_out={out}"))
        .arg("tokenbroker/v1/token_broker.proto")
        .current_dir(tools::root())
        .output()
        .await;
    let made = made.expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    life(|| {
        let mut command = Command::new(&python);
        command.arg(tools::root().join("bots/examples/get_token.py"));
        command.env("PYTHONPATH", generated.path());
        command
    })
    .await;
}

async fn in_node() {
    life(|| {
        let mut command = Command::new(tools::find("node").expect("the harness has found it"));
        command.arg(tools::root().join("bots/examples/get_token.mjs"));
        command
    })
    .await;
}

/// A link first, then the token, then what cannot be had.
async fn life(command: impl Fn() -> Command) {
    let world = World::with(|setup| {
        let mut narrow = bot("narrow");
        narrow.methods = Some(["Authorize".to_owned()].into());
        setup.bots.push(narrow);
    })
    .await;
    let run = async |bot: &str, provider: &str| -> Output {
        let mut command = command();
        command
            .args([provider, "u1"])
            .env("TOKEN_BROKER_ADDRESS", world.grpc_address.to_string())
            .env("TOKEN_BROKER_API_KEY", api_key(bot).expose())
            .kill_on_drop(true);
        command.output().await.expect("it runs")
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let first = run("helper", PROVIDER).await;
    assert!(first.status.success(), "{}", text(&first.stderr));
    consented(&world, &text(&first.stdout)).await;
    let second = run("helper", PROVIDER).await;
    assert!(second.status.success(), "{}", text(&second.stderr));
    assert_eq!(text(&second.stdout), world.token("u1").await);
    for (bot, provider, code) in [
        ("nobody", PROVIDER, "UNAUTHENTICATED"),
        ("helper", "nowhere", "PERMISSION_DENIED"),
        ("narrow", PROVIDER, "PERMISSION_DENIED"),
    ] {
        let refused = run(bot, provider).await;
        assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stdout));
        let told = text(&refused.stderr);
        assert!(told.contains(code) && !told.contains("Traceback"), "{told}");
        assert!(!told.contains(api_key(bot).expose()), "{told}");
        assert_eq!(text(&refused.stdout), "");
    }
}

/// What the README shows of them is what was run here.
async fn shown() {
    let read = |path: &str| {
        std::fs::read_to_string(tools::root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    let readme = read("README.md");
    for (language, path) in [
        ("rust", "bots/examples/get_token.rs"),
        ("python", "bots/examples/get_token.py"),
        ("js", "bots/examples/get_token.mjs"),
    ] {
        let start = readme.split_once(&format!("```{language}\n"));
        let block = start.unwrap_or_else(|| panic!("no {language} in the README")).1;
        let block = block.split_once("```").expect("an end").0;
        assert!(read(path).contains(block), "{path} has something else than:\n{block}");
    }
}
