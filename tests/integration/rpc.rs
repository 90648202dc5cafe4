//! Every RPC as a bot sees it: its answers, its refusals, and the bounds of what the bot may do.

mod authorizations;
mod edges;
mod expiry;
mod invalid;
mod latency;
mod limits;
mod lists;
mod namespaces;
mod policy;
mod reasons;
mod refresh;
mod revoke;
mod starting;
mod support;
mod tokens;

use libtest_mimic::Trial;

pub fn trials() -> Vec<Trial> {
    [
        authorizations::trials(),
        edges::trials(),
        expiry::trials(),
        invalid::trials(),
        latency::trials(),
        limits::trials(),
        lists::trials(),
        namespaces::trials(),
        policy::trials(),
        reasons::trials(),
        refresh::trials(),
        revoke::trials(),
        starting::trials(),
        tokens::trials(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
