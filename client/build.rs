//! Generates the messages and the client from the contract, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../proto");
    let contract = protox::compile(["tokenbroker/v1/token_broker.proto"], ["../proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        // These hold a token or a code: their Debug is written by hand, in src/redacted.rs.
        .skip_debug([".tokenbroker.v1.Token", ".tokenbroker.v1.ConfirmAuthorizationRequest"])
        // Metadata and values in their order, so that equal messages are written the same.
        .btree_map(".")
        .compile_fds(contract)?;
    Ok(())
}
