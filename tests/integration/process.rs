//! The program as an operator runs it: child processes of the real binary, configured by a file and
//! the environment, observed by what they print and by the sockets that they open.

mod canary;
pub mod child;
mod commands;
pub mod database;
mod demo;
mod fleet;
mod full_disk;
mod idle;
mod keyrings;
pub mod life;
pub mod outage;
pub mod premises;
mod refused;
mod search;
mod secrets;
mod servers;
pub mod site;
mod telemetry;
mod tls;
mod upgrade;
pub mod weather;

use libtest_mimic::Trial;

pub fn trials() -> Vec<Trial> {
    let all = [
        life::trials(),
        servers::trials(),
        database::trials(),
        outage::trials(),
        fleet::trials(),
        refused::trials(),
        commands::trials(),
        secrets::trials(),
        telemetry::trials(),
        tls::trials(),
        canary::trials(),
        demo::trials(),
        full_disk::trials(),
        idle::trials(),
        keyrings::trials(),
        upgrade::trials(),
    ];
    all.into_iter().flatten().collect()
}
