//! The configuration under which the service is measured, and its provider.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use base64::prelude::{BASE64_STANDARD, Engine};
use sha2::{Digest, Sha256};
use token_broker::crypto::random::Random;
use token_broker::demo::provider::{DemoProvider, Settings};
use token_broker::domain::provider::RevocationReach;

pub const API_KEY: &str = "tbk_0000000000000000000000000000000000000000000";
/// Of the bot `greedy`, which shares the grants of `helper`.
pub const GREEDY_API_KEY: &str = "tbk_1111111111111111111111111111111111111111111";
pub const ENCRYPTION_KEY: &[u8; 32] = b"a key of the benchmark, 32 byte\xff";
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A configuration of the bots `helper` and `greedy`, and the provider `acme`.
pub fn config(database_url: &str, issuer: &str, http: SocketAddr) -> String {
    format!(
        "database.url = {database_url:?}\n\
         encryption.keys = [{{ id = \"test\", key = \"{}\" }}]\n\
         grpc.listen = \"127.0.0.1:0\"\nops.listen = \"127.0.0.1:0\"\n\
         http = {{ listen = \"{http}\", public_url = \"http://127.0.0.1\" }}\n\
         [providers.acme]\nissuer = {issuer:?}\nclient_id = \"token-broker\"\n\
         client_secret = \"a secret of the benchmark\"\nscopes = [\"profile\", \"email\"]\n\
         [bots.helper]\napi_keys_sha256 = [\"{}\"]\nproviders = [\"acme\"]\n\
         [bots.greedy]\napi_keys_sha256 = [\"{}\"]\nproviders = [\"acme\"]\nnamespace = \"helper\"\n",
        BASE64_STANDARD.encode(ENCRYPTION_KEY),
        hex::encode(Sha256::digest(API_KEY)),
        hex::encode(Sha256::digest(GREEDY_API_KEY)),
    )
}

/// The provider, without any delay.
pub fn provider(issuer: &str) -> DemoProvider {
    let random = Random::system();
    let provider = DemoProvider::new(Settings {
        client_id: "token-broker".to_owned(),
        client_secret: "a secret of the benchmark".to_owned(),
        redirect_uris: vec!["http://127.0.0.1/oauth2/callback/acme".to_owned()],
        access_token_lifetime: TOKEN_LIFETIME,
        refresh_grace: Duration::ZERO,
        revocation_reach: RevocationReach::Token,
        state_file: None,
        issuer: issuer.to_owned(),
        clock: Arc::new(|| {
            let since = UNIX_EPOCH.elapsed().expect("after 1970");
            u64::try_from(since.as_millis()).expect("a time")
        }),
        random: Arc::new(move |bytes| random.fill(bytes)),
    });
    provider.expect("a provider")
}
