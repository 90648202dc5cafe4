//! `[bots.NAME]`: the calling programs and what they may do.

use std::collections::{BTreeMap, BTreeSet};

use super::placeholder;
use super::problem::Reported;
use super::providers::{joined, scope};
use super::section::{Section, all, join, nearest};
use super::value::{boolean, choice, count, parsed};
use crate::domain::bot::{Bot, Confirmation, Providers, Rate, ReturnUrl, SubjectPattern};
use crate::domain::name::Name;
use crate::domain::scope::Scopes;

/// Keys of later versions.
const UNSUPPORTED: [&str; 2] = ["service_accounts", "spiffe_ids"];

/// The RPCs of `tokenbroker.v1.TokenBrokerService`.
pub const METHODS: [&str; 11] = [
    "Authorize",
    "GetAuthorization",
    "WatchAuthorization",
    "ConfirmAuthorization",
    "CancelAuthorization",
    "GetToken",
    "Refresh",
    "Revoke",
    "RevokeAll",
    "ListGrants",
    "ListProviders",
];

const KEY_REMEDY: &str = "write the SHA-256 that `token-broker api-key new` prints";

/// Stands for every provider.
const ALL: &str = "*";

/// The rest of the configuration, against which a bot is checked.
struct Others<'a> {
    /// The configured providers. Empty: unknown, and reported already.
    providers: &'a BTreeSet<String>,
    /// The bot of each hash.
    owners: BTreeMap<[u8; 32], String>,
}

/// The bots, in order of their names.
pub(super) fn read(
    root: &mut Section<'_>,
    providers: &BTreeSet<String>,
) -> Result<Vec<Bot>, Reported> {
    let named = root.named("bots")?;
    if named.is_empty() {
        return Err(root.problem(
            "bots",
            "no bot is configured; add [bots.NAME] with providers and api_keys_sha256 \
             (`token-broker api-key new` prints a key and its SHA-256)",
        ));
    }
    let mut others = Others { providers, owners: BTreeMap::new() };
    let bots = all(named
        .into_iter()
        .map(|(name, section)| section.and_then(|section| bot(&name, section, &mut others))))?;
    confirmations(root, &bots)?;
    Ok(bots)
}

/// Refuses a namespace whose grants one bot confirms and another does not: the weaker one would decide for both.
fn confirmations(root: &Section<'_>, bots: &[Bot]) -> Result<(), Reported> {
    let mut first: BTreeMap<&Name, &Bot> = BTreeMap::new();
    for bot in bots {
        let other = first.entry(&bot.namespace).or_insert(bot);
        if other.confirmation != bot.confirmation {
            let wrong = format!(
                "differs from that of bots.{}, which shares the namespace {}; write the same, or give one of them a \
                 namespace of its own",
                other.name, bot.namespace
            );
            let key = join(&join("bots", bot.name.as_str()), "confirmation");
            return Err(root.report.push(&key, wrong));
        }
    }
    Ok(())
}

fn bot(text: &str, mut section: Section<'_>, others: &mut Others<'_>) -> Result<Bot, Reported> {
    let name = Name::parse(text).map_err(|wrong| section.problem_here(wrong.to_string()));
    let api_keys_sha256 = section
        .required_list("api_keys_sha256", KEY_REMEDY, |key| others.key(key, &join("bots", text)));
    let providers = providers(&mut section, others);
    let return_urls =
        section.list("return_urls", |url| ReturnUrl::parse(url).map_err(|wrong| wrong.to_string()));
    let options = [("code", Confirmation::Code), ("none", Confirmation::None)];
    let confirmation = section.or("confirmation", Confirmation::Code, choice(&options));
    let device_flow = section.or("device_flow", false, boolean);
    if matches!(device_flow, Ok(true)) {
        section.problem("device_flow", "is not supported by this version yet; remove it");
    }
    let namespace = section.optional(
        "namespace",
        parsed(|namespace| Name::parse(namespace).map_err(|wrong| wrong.to_string())),
    );
    let scopes = scopes(&mut section, others);
    let subjects = section.filled_list("subjects", "remove it to allow any subject", |pattern| {
        let pattern = SubjectPattern::parse(pattern);
        pattern.ok_or_else(|| "must be a subject, or a prefix of subjects and one *".to_owned())
    });
    let methods = section.filled_list("methods", "remove it to allow every method", method);
    let rate = section.optional_section("rate").and_then(|rate| rate.map(rated).transpose());
    section.refuse(&UNSUPPORTED);
    section.finish();

    device_flow?;
    let name = name?;
    Ok(Bot {
        namespace: namespace?.unwrap_or_else(|| name.clone()),
        name,
        api_keys_sha256: api_keys_sha256?,
        providers: providers?,
        return_urls: return_urls?.unwrap_or_default(),
        confirmation: confirmation?,
        scopes: scopes?,
        subjects: subjects?,
        methods: methods?.map(|methods| methods.into_iter().collect()),
        rate: rate?,
    })
}

impl Others<'_> {
    /// A key's hash. What stands there instead may be the key itself, so it is not shown.
    fn key(&mut self, text: &str, bot: &str) -> Result<[u8; 32], String> {
        let mut hash = [0; 32];
        if text.starts_with("tbk_") {
            return Err(format!("is an API key itself; make a new one and {KEY_REMEDY}"));
        }
        hex::decode_to_slice(text, &mut hash)
            .map_err(|_| format!("must be 64 hex digits; {KEY_REMEDY}"))?;
        if hash == [0; 32] {
            return Err(format!("is a placeholder of zeros; {KEY_REMEDY}"));
        }
        if placeholder::is_hash_of_known_key(&hash) {
            return Err(format!("is the hash of a key that anyone can guess; {KEY_REMEDY}"));
        }
        match self.owners.insert(hash, bot.to_owned()) {
            Some(other) if other == bot => Err("is there already; remove it".to_owned()),
            Some(other) => Err(format!(
                "is also a key of {other}, so that nobody can tell which bot calls; give each bot \
                 a key of its own"
            )),
            None => Ok(hash),
        }
    }

    fn provider(&self, text: &str) -> Result<Name, String> {
        if !self.providers.is_empty() && !self.providers.contains(text) {
            let configured: Vec<_> = self.providers.iter().map(String::as_str).collect();
            let configured = configured.join(", ");
            return Err(format!("{text:?} is no configured provider; there are: {configured}"));
        }
        Name::parse(text).map_err(|wrong| wrong.to_string())
    }
}

fn providers(section: &mut Section<'_>, others: &Others<'_>) -> Result<Providers, Reported> {
    let remedy = "list the providers that the bot may use, or write [\"*\"] for all";
    let names = section.required_list("providers", remedy, |text| {
        if text == ALL { Ok(None) } else { others.provider(text).map(Some) }
    })?;
    let count = names.len();
    let names: BTreeSet<Name> = names.into_iter().flatten().collect();
    if names.is_empty() {
        return Ok(Providers::All);
    }
    if names.len() < count {
        return Err(section.problem(
            "providers",
            "must name each provider once and \"*\" alone; remove what is too much",
        ));
    }
    Ok(Providers::Only(names))
}

fn scopes(
    section: &mut Section<'_>,
    others: &Others<'_>,
) -> Result<BTreeMap<Name, Scopes>, Reported> {
    let mut table = section.section("scopes")?;
    let allowed = all(table.keys().into_iter().map(|key| {
        let list = table.list(&key, scope);
        let name = others.provider(&key).map_err(|wrong| table.problem(&key, wrong));
        Ok((name?, joined(&list?.unwrap_or_default())))
    }));
    allowed.map(|allowed| allowed.into_iter().collect())
}

fn method(text: &str) -> Result<String, String> {
    if METHODS.contains(&text) {
        return Ok(text.to_owned());
    }
    let remedy = match nearest(text, METHODS.into_iter()) {
        Some(method) => format!("did you mean {method}?"),
        None => format!("there are: {}", METHODS.join(", ")),
    };
    Err(format!("{text:?} is no method of the service; {remedy}"))
}

pub(super) fn rated(mut section: Section<'_>) -> Result<Rate, Reported> {
    let per_second = section.required("per_second", "write the sustained calls per second", count);
    let burst = section.required("burst", "write how many calls may come at once", count);
    section.finish();
    Ok(Rate { per_second: per_second?, burst: burst? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;

    const PROTO: &str = include_str!("../../proto/tokenbroker/v1/token_broker.proto");

    fn bots(text: &str) -> Result<Vec<Bot>, String> {
        let providers = ["acme", "google"].map(str::to_owned).into();
        testing::read(text, |root| read(root, &providers))
    }

    fn helper(more: &str) -> Result<Bot, String> {
        let hash = "ab".repeat(32);
        let text = format!("[bots.helper]\napi_keys_sha256 = ['{hash}']\n{more}");
        bots(&text).map(|mut bots| bots.remove(0))
    }

    fn wrong(more: &str) -> String {
        helper(&format!("providers = ['*']\n{more}")).expect_err("problems")
    }

    #[test]
    fn the_methods_are_those_of_the_service() {
        let declared: Vec<_> = PROTO
            .lines()
            .filter_map(|line| line.trim().strip_prefix("rpc "))
            .filter_map(|line| line.split_once('(').map(|(name, _)| name))
            .collect();
        assert_eq!(METHODS.as_slice(), declared);
    }

    #[test]
    fn defaults() {
        let helper = helper("providers = ['*']").expect("a bot");
        assert_eq!(helper.name.as_str(), "helper");
        assert_eq!(helper.namespace.as_str(), "helper");
        assert_eq!(helper.api_keys_sha256, [[0xab; 32]]);
        assert_eq!(helper.providers, Providers::All);
        assert_eq!(helper.confirmation, Confirmation::Code);
        assert!(helper.return_urls.is_empty() && helper.scopes.is_empty());
        assert!(helper.subjects.is_none() && helper.methods.is_none() && helper.rate.is_none());
    }

    #[test]
    fn everything_set() {
        let helper = helper(
            "providers = ['google', 'acme']
             return_urls = ['https://chat.example.com/']
             confirmation = 'none'
             device_flow = false
             namespace = 'shared'
             scopes = { google = ['profile', 'email'] }
             subjects = ['acme.rocket.chat/*']
             methods = ['GetToken']
             rate = { per_second = 100, burst = 200 }",
        )
        .expect("a bot");
        assert_eq!(helper.namespace.as_str(), "shared");
        assert!(helper.may_use("acme") && helper.may_use("google") && !helper.may_use("other"));
        assert!(helper.allowed_return_url("https://chat.example.com/room").is_some());
        assert_eq!(helper.confirmation, Confirmation::None);
        let drive = Scopes::from_provider("drive");
        assert_eq!(helper.scopes_beyond("google", &drive), ["drive"]);
        assert!(helper.may_act_for("acme.rocket.chat/u1") && !helper.may_act_for("u1"));
        assert!(helper.may_call("GetToken") && !helper.may_call("Revoke"));
        let rate = helper.rate.expect("a rate");
        assert_eq!((rate.per_second.get(), rate.burst.get()), (100, 200));
    }

    #[test]
    fn every_wrong_item_is_told() {
        let problems = wrong(
            "return_urls = ['http://chat.example.com/', 'https://a.example/#b']
             confirmation = 'maybe'
             device_flow = true
             namespace = 'A'
             scopes = { acme = ['a b'], gogle = ['x'] }
             subjects = ['a*b', '*']
             methods = ['GetTokens', 'Delete']
             rate = { per_second = 0, brust = 1 }
             service_accounts = ['chat/helper']
             spiffe_ids = []",
        );
        let expected = "\
return_urls: item 1 must be an absolute https URL (http is allowed on loopback only)
return_urls: item 2 must have no user information and no fragment
confirmation: must be \"code\" or \"none\"
device_flow: is not supported by this version yet; remove it
namespace: must be of the form [a-z][a-z0-9]*(-[a-z0-9]+)*, at most 63 bytes
scopes.acme: item 1 must be one scope, of at most 255 printable ASCII characters without space, quote and backslash
scopes.gogle: \"gogle\" is no configured provider; there are: acme, google
subjects: item 1 must be a subject, or a prefix of subjects and one *
methods: item 1 \"GetTokens\" is no method of the service; did you mean GetToken?
methods: item 2 \"Delete\" is no method of the service; there are: Authorize, GetAuthorization, WatchAuthorization, ConfirmAuthorization, CancelAuthorization, GetToken, Refresh, Revoke, RevokeAll, ListGrants, ListProviders
rate.per_second: must be a whole number from 1 to 4294967295
rate.burst: is required; write how many calls may come at once
rate.brust: is unknown; did you mean burst?
service_accounts: is not supported by this version yet; remove it
spiffe_ids: is not supported by this version yet; remove it";
        let expected: Vec<_> = expected.lines().map(|line| format!("bots.helper.{line}")).collect();
        assert_eq!(problems.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn empty_lists_are_refused_where_they_would_allow_nothing() {
        assert_eq!(
            wrong("subjects = []\nmethods = []"),
            "bots.helper.subjects: must not be empty; remove it to allow any subject\n\
             bots.helper.methods: must not be empty; remove it to allow every method"
        );
    }

    #[test]
    fn a_bot_names_its_providers() {
        let remedy = "list the providers that the bot may use, or write [\"*\"] for all";
        let once = "must name each provider once and \"*\" alone; remove what is too much";
        for (more, expected) in [
            ("", format!("is required; {remedy}")),
            ("providers = []", format!("must not be empty; {remedy}")),
            ("providers = ['*', 'acme']", once.to_owned()),
            ("providers = ['acme', 'acme']", once.to_owned()),
            (
                "providers = ['acme', 'gogle']",
                "item 2 \"gogle\" is no configured provider; there are: acme, google".to_owned(),
            ),
        ] {
            let expected = format!("bots.helper.providers: {expected}");
            assert_eq!(helper(more).expect_err("problems"), expected);
        }
    }

    #[test]
    fn a_key_belongs_to_one_bot() {
        let (one, two) = ("01".repeat(32), "02".repeat(32));
        let problems = bots(&format!(
            "[bots.a]\nproviders = ['*']\napi_keys_sha256 = ['{one}', 'tb_secret', '{one}']\n\
             [bots.b]\nproviders = ['*']\napi_keys_sha256 = ['{two}', '{one}']\n\
             [bots.c]\nproviders = ['*']\napi_keys_sha256 = []\n\
             [bots.d]\nproviders = ['*']"
        ));
        assert_eq!(
            problems.expect_err("problems"),
            "\
bots.a.api_keys_sha256: item 2 must be 64 hex digits; write the SHA-256 that `token-broker api-key new` prints
bots.a.api_keys_sha256: item 3 is there already; remove it
bots.b.api_keys_sha256: item 2 is also a key of bots.a, so that nobody can tell which bot calls; give each bot a key of its own
bots.c.api_keys_sha256: must not be empty; write the SHA-256 that `token-broker api-key new` prints
bots.d.api_keys_sha256: is required; write the SHA-256 that `token-broker api-key new` prints"
        );
    }

    #[test]
    fn there_must_be_one() {
        assert_eq!(
            bots("").expect_err("problems"),
            "bots: no bot is configured; add [bots.NAME] with providers and api_keys_sha256 \
             (`token-broker api-key new` prints a key and its SHA-256)"
        );
        assert_eq!(
            bots("bots.list = { providers = ['*'] }").expect_err("problems"),
            "bots.list: is a command word of the bots; choose another name\n\
             bots.list.api_keys_sha256: is required; write the SHA-256 that \
             `token-broker api-key new` prints"
        );
    }
}
