use super::*;

const LIMITS: ConnectionLimits =
    ConnectionLimits { total: 4, per_peer: 4, pending: 3, pending_per_peer: 2, active_per_bot: 2 };

fn admit(connections: &Arc<Connections>, peer: &str) -> Option<Place> {
    connections.admit(SocketAddr::new(peer.parse().expect("an address"), 1))
}

#[test]
fn the_oldest_pending_connection_of_a_peer_gives_way() {
    let connections = Connections::new("test", LIMITS);
    let other = admit(&connections, "192.0.2.2").expect("a place");
    let first = admit(&connections, "192.0.2.1").expect("a place");
    let second = admit(&connections, "192.0.2.1").expect("a place");
    let third = admit(&connections, "::ffff:192.0.2.1").expect("a place");
    let ended = [&other, &first, &second, &third].map(|place| place.is_ended());
    assert_eq!(ended, [false, true, false, false]);
}

#[test]
fn the_peer_with_the_most_pending_connections_gives_way_to_others() {
    let connections = Connections::new("test", LIMITS);
    let single = admit(&connections, "192.0.2.2").expect("a place");
    let first = admit(&connections, "192.0.2.1").expect("a place");
    let second = admit(&connections, "192.0.2.1").expect("a place");
    let _other = admit(&connections, "192.0.2.3").expect("a place");
    let ended = [&single, &first, &second].map(|place| place.is_ended());
    assert_eq!(ended, [false, true, false]);
}

#[test]
fn an_ipv6_network_is_one_peer() {
    let connections = Connections::new("test", LIMITS);
    let first = admit(&connections, "2001:db8::1").expect("a place");
    let _second = admit(&connections, "2001:db8::2").expect("a place");
    let _third = admit(&connections, "2001:db8::3").expect("a place");
    assert!(first.is_ended());
    let elsewhere = admit(&connections, "2001:db8:0:1::1").expect("a place");
    assert!(!elsewhere.is_ended());
}

#[test]
fn active_connections_stay_and_count() {
    let connections = Connections::new("test", LIMITS);
    let places: Vec<_> = (1..=4)
        .map(|host| {
            let place = admit(&connections, &format!("192.0.2.{host}")).expect("a place");
            place.set_active(None);
            place
        })
        .collect();
    assert!(admit(&connections, "192.0.2.9").is_none(), "all are active");
    places[2].set_pending();
    let next = admit(&connections, "192.0.2.9").expect("the place of the pending one");
    assert!(places[2].is_ended());
    assert!(places.iter().filter(|place| place.is_ended()).count() == 1);
    drop((places, next));
    assert_eq!(connections.open().total, 0);
    assert!(connections.open().pending_by_peer.is_empty());
    assert!(connections.open().total_by_peer.is_empty());
}

#[test]
fn one_peer_does_not_take_every_place() {
    let limits =
        ConnectionLimits { total: 400, per_peer: 2, pending: 400, pending_per_peer: 400, ..LIMITS };
    let connections = Connections::new("test", limits);
    let mut places = Vec::new();
    while let Some(place) = admit(&connections, "192.0.2.1") {
        place.set_active(None);
        places.push(place);
    }
    assert_eq!(places.len(), 2);
    assert!(admit(&connections, "192.0.2.2").is_some());
}

#[test]
fn one_bot_keeps_only_its_share() {
    let connections = Connections::new("test", LIMITS);
    let bot = |name| Name::parse(name).expect("a name");
    let places: Vec<_> = (1..=3)
        .map(|host| {
            let place = admit(&connections, &format!("192.0.2.{host}")).expect("a place");
            place.set_active(Some(&bot("greedy")));
            place
        })
        .collect();
    let pending: Vec<_> = places.iter().map(Place::is_pending).collect();
    assert_eq!(pending, [false, false, true]);
    let other = admit(&connections, "192.0.2.9").expect("a place");
    other.set_active(Some(&bot("modest")));
    assert!(!other.is_pending());
    // A place that becomes free can be taken again.
    drop(places);
    assert_eq!(connections.open().active_by_bot.len(), 1);
}

#[test]
fn connections_without_a_call_are_closed_at_the_end() {
    let connections = Connections::new("test", LIMITS);
    let place = || admit(&connections, "192.0.2.1").map(Arc::new).expect("a place");
    let (idle, running, unread) = (place(), place(), place());
    for place in [&idle, &running, &unread] {
        place.set_active(None);
    }
    let call = running.run();
    let response = unread.send();
    assert!(unread.unread_for().is_some() && running.unread_for().is_none());
    connections.close_idle();
    let ended = [&idle, &running, &unread].map(|place| place.is_ended());
    assert_eq!(ended, [true, false, true]);
    drop((call, response));
    assert!(unread.unread_for().is_none());
    connections.close_idle();
    assert!(running.is_ended());
}

#[test]
fn closing_ends_the_pending_ones() {
    let connections = Connections::new("test", LIMITS);
    let (idle, active) = (admit(&connections, "192.0.2.1"), admit(&connections, "192.0.2.2"));
    let (idle, active) = (idle.expect("a place"), active.expect("a place"));
    active.set_active(None);
    connections.close();
    active.set_pending();
    assert!(idle.is_ended() && !active.is_ended());
    assert!(admit(&connections, "192.0.2.3").is_none());
}
