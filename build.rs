//! Generates the server from the contract, without protoc. The messages are the client crate's.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let contract = protox::compile(["tokenbroker/v1/token_broker.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // What reflection serves.
    std::fs::write(out.join("contract.bin"), contract.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".tokenbroker.v1", "::token_broker_client::proto")
        .compile_fds(contract)?;
    Ok(())
}
