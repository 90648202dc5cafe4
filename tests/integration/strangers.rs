//! What anyone can do who reaches the listeners, without a credential.

mod grpc;
mod http;
mod links;

use libtest_mimic::Trial;

pub fn trials() -> Vec<Trial> {
    [grpc::trials(), http::trials(), links::trials()].into_iter().flatten().collect()
}
