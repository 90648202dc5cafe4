//! Prints a user's access token, or the link by which the user allows it. With the demo:
//!
//! ```text
//! TOKEN_BROKER_ADDRESS=127.0.0.1:50051 TOKEN_BROKER_API_KEY=tbk_… \
//!     cargo run -p token-broker-client --example get_token demo demo/you
//! ```

use token_broker_client::{ApiKey, Client, Refusal, proto};

/// Returns the token, or the sentence for the user.
pub async fn token_or_link(
    broker: &mut Client,
    provider: &str,
    subject: &str,
) -> Result<String, tonic::Status> {
    let key = proto::GrantKey {
        provider: provider.into(),
        subject: subject.into(),
        ..Default::default()
    };
    // Where the user has to authorize first, the error then brings the link along.
    let start_authorization = Some(proto::AuthorizationOptions::default());
    let request =
        proto::GetTokenRequest { key: Some(key), start_authorization, ..Default::default() };
    match broker.get_token(request).await {
        Ok(answer) => Ok(answer.into_inner().token.unwrap_or_default().access_token),
        Err(status) => match Refusal::of(&status).and_then(|refusal| refusal.authorization) {
            Some(started) => Ok(format!("Open {}", started.authorization_url)),
            None => Err(status),
        },
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(provider), Some(subject)) = (arguments.next(), arguments.next()) else {
        return Err("name a provider and a subject".into());
    };
    // Plaintext, as on loopback: across a network, the API key needs https.
    let address = format!("http://{}", std::env::var("TOKEN_BROKER_ADDRESS")?);
    let key = ApiKey::new(&std::env::var("TOKEN_BROKER_API_KEY")?)?;
    let mut broker = Client::new(Client::channel(address)?.connect().await?, key);
    use std::io::Write;
    writeln!(std::io::stdout(), "{}", token_or_link(&mut broker, &provider, &subject).await?)?;
    Ok(())
}
