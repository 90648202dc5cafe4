//! Lists: one order, no gap and no double, and prefixes that are no patterns.

use libtest_mimic::Trial;
use token_broker::domain::grant::GrantKey;
use token_broker::storage::{ListFilter, ListPosition, SubjectFilter};

use super::backend::{Backend, Store, disposal, key, key_at, tokens};
use crate::harness::world::name;

pub fn trials<B: Backend>() -> Vec<Trial> {
    vec![
        B::trial("a_list_goes_by_subject_provider_and_account_in_pages", pages::<B>),
        B::trial("a_page_is_right_though_rows_come_and_go", moving::<B>),
        B::trial("a_prefix_is_no_pattern", prefixes::<B>),
        B::trial("filters_narrow_together", filters::<B>),
        B::trial("a_list_shows_the_grant_as_it_stands", as_it_stands::<B>),
    ]
}

fn all() -> ListFilter {
    ListFilter {
        namespace: name("helper"),
        providers: None,
        subjects: None,
        after: None,
        limit: 100,
    }
}

fn position(key: &GrantKey) -> ListPosition {
    ListPosition {
        subject: key.subject.as_str().to_owned(),
        provider: key.provider.to_string(),
        account: key.account.as_str().to_owned(),
    }
}

async fn list(store: &Store, filter: &ListFilter) -> Vec<GrantKey> {
    let grants = store.grants().list_grants(filter).await.expect("storage");
    grants.into_iter().map(|grant| grant.key).collect()
}

async fn subjects(store: &Store, filters: Vec<SubjectFilter>) -> Vec<String> {
    let filter = ListFilter { subjects: Some(filters), ..all() };
    let keys = list(store, &filter).await;
    keys.into_iter().map(|key| key.subject.as_str().to_owned()).collect()
}

async fn pages<B: Backend>() {
    let store = Store::new::<B>().await;
    // By their bytes: upper case first, and umlauts last.
    let ordered = [
        ("B", "acme", ""),
        ("a", "acme", ""),
        ("a", "acme", "Work"),
        ("a", "acme", "home"),
        ("a", "bolt", ""),
        ("a b", "acme", ""),
        ("aa", "acme", ""),
        ("ä", "acme", ""),
    ];
    let keys: Vec<_> = ordered.map(|(s, p, a)| key_at("helper", p, s, a)).into();
    for index in [3, 7, 0, 5, 2, 6, 1, 4] {
        store.grant(&keys[index], &index.to_string()).await;
    }
    store.grant(&key_at("other", "acme", "a", ""), "other").await;
    assert_eq!(list(&store, &all()).await, keys);
    for limit in 1..=9 {
        let mut filter = ListFilter { limit, ..all() };
        let mut seen = Vec::new();
        loop {
            let page = list(&store, &filter).await;
            assert!(page.len() as u64 <= limit);
            let Some(last) = page.last() else { break };
            filter.after = Some(position(last));
            seen.extend(page);
        }
        assert_eq!(seen, keys, "pages of {limit}");
    }
}

async fn moving<B: Backend>() {
    let store = Store::new::<B>().await;
    for subject in ["b", "d", "f"] {
        store.grant(&key(subject), subject).await;
    }
    let first = list(&store, &ListFilter { limit: 2, ..all() }).await;
    assert_eq!(first, [key("b"), key("d")]);
    // The grant that the page ended at is gone by the next call.
    store.grants().revoke(&key("d"), &disposal()).await.expect("storage");
    store.grant(&key("a"), "a").await;
    store.grant(&key("e"), "e").await;
    let after = Some(position(&key("d")));
    assert_eq!(list(&store, &ListFilter { after, ..all() }).await, [key("e"), key("f")]);
}

async fn prefixes<B: Backend>() {
    let store = Store::new::<B>().await;
    let names = ["100%", "100%x", "1000", "A_b", "AXb", "a_b", "aXb", "a\\_b", "ä1", "ä2", "a'--"];
    for subject in names {
        store.grant(&key(subject), subject).await;
    }
    for (prefix, expected) in [
        ("100%", vec!["100%", "100%x"]),
        ("100", vec!["100%", "100%x", "1000"]),
        ("%", vec![]),
        ("_", vec![]),
        ("a_", vec!["a_b"]),
        ("A_", vec!["A_b"]),
        ("a\\", vec!["a\\_b"]),
        ("a'", vec!["a'--"]),
        // Characters count, not bytes.
        ("ä", vec!["ä1", "ä2"]),
        ("ä1", vec!["ä1"]),
        ("ä1 and more", vec![]),
    ] {
        let found = subjects(&store, vec![SubjectFilter::StartsWith(prefix.to_owned())]).await;
        assert_eq!(found, expected, "{prefix:?}");
    }
    let every = subjects(&store, vec![SubjectFilter::StartsWith(String::new())]).await;
    assert_eq!(every.len(), names.len());
    let exact = subjects(&store, vec![SubjectFilter::Is("a_b".to_owned())]).await;
    assert_eq!(exact, ["a_b"]);
}

async fn filters<B: Backend>() {
    let store = Store::new::<B>().await;
    for (provider, subject) in [("acme", "u1"), ("bolt", "u1"), ("acme", "u2"), ("acme", "v1")] {
        store.grant(&key_at("helper", provider, subject, ""), "x").await;
    }
    let at = |provider, subject| key_at("helper", provider, subject, "");
    let acme = Some(vec![name("acme")]);
    let providers = ListFilter { providers: acme.clone(), ..all() };
    assert_eq!(
        list(&store, &providers).await,
        [at("acme", "u1"), at("acme", "u2"), at("acme", "v1")]
    );
    let either = vec![SubjectFilter::Is("v1".into()), SubjectFilter::StartsWith("u".into())];
    assert_eq!(subjects(&store, either.clone()).await, ["u1", "u1", "u2", "v1"]);
    let after = Some(position(&at("acme", "u1")));
    let both = ListFilter { providers: acme, subjects: Some(either), after, ..all() };
    assert_eq!(list(&store, &both).await, [at("acme", "u2"), at("acme", "v1")]);
    // Allowed nothing is nothing, not everything.
    assert!(list(&store, &ListFilter { providers: Some(Vec::new()), ..all() }).await.is_empty());
    assert!(subjects(&store, Vec::new()).await.is_empty());
}

async fn as_it_stands<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    let tokens = tokens("2", store.now());
    store.grants().commit_refresh(&grant, &tokens, &disposal()).await.expect("storage");
    let held = store.held(&key("u1")).await.grant;
    assert!(store.grants().flag(&held, "invalid_grant").await.expect("storage"));
    let listed = store.grants().list_grants(&all()).await.expect("storage");
    assert_eq!(listed.len(), 1);
    let expected = store.held(&key("u1")).await.grant;
    assert_eq!(format!("{:?}", listed[0]), format!("{expected:?}"));
}
