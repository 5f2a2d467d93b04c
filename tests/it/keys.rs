//! Keys: meshes that share a machine and do not meet, and keys that change under way.
//!
//! E-AUTH: members prove that they hold the key, both ways; whoever does not is refused on both sides. Rings of
//! identities and the proof itself are tested where they are written.

use std::time::Duration;

use bytes::Bytes;
use meshd::{
    Codec, DownReason, KeyInfo, ListenOptions, NetworkKey, Node, Overflow, RotationError, SendOptions, Target, What,
};
use tempfile::TempDir;

use crate::cluster::{Cluster, MESH, PATIENCE, address, happens, listened_by, next, see_each_other, stays, until};

#[tokio::test(flavor = "multi_thread")]
async fn two_meshes_in_one_place_never_see_each_other() {
    let (ours, theirs) = (Cluster::new(), NetworkKey::generate());
    let mut foreign = Vec::new();
    for name in ["x", "y"] {
        foreign.push(ours.builder(name).key(theirs.clone()).start().await.unwrap());
    }
    let members = ours.start_all(["a", "b"]).await;
    see_each_other(&foreign).await;
    check_apart(&members, &foreign).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_with_another_mesh_name_is_another_mesh() {
    let cluster = Cluster::new();
    let mut foreign = Vec::new();
    for name in ["x", "y"] {
        foreign.push(cluster.builder(name).mesh("another").start().await.unwrap());
    }
    let members = cluster.start_all(["a", "b"]).await;
    see_each_other(&foreign).await;
    check_apart(&members, &foreign).await;
    assert_ne!(members[0].keys().await.unwrap().fingerprint, foreign[0].keys().await.unwrap().fingerprint);
}

/// Two nodes in each of two meshes. All listen to the same topic, and only one's own hear.
async fn check_apart(members: &[Node], foreign: &[Node]) {
    for nodes in [members, foreign] {
        let mut listeners = [nodes[0].listen("t").await.unwrap(), nodes[1].listen("t").await.unwrap()];
        listened_by(&nodes[0].publisher("t").unwrap(), 2).await;
        assert_eq!(nodes[0].send("t", &1).await.unwrap().matched, 2);
        for listener in &mut listeners {
            assert_eq!(next(listener).await.from, nodes[0].id());
        }
    }
    stays(Duration::from_secs(1), "nobody sees or dials the other mesh", async || {
        for nodes in [members, foreign] {
            for node in nodes {
                let status = node.status().await.unwrap();
                if (status.peers, status.nodes, status.foreign.refused) != (1, 2, 0) {
                    return false;
                }
            }
        }
        true
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_refused_on_both_sides_and_not_tried_in_a_loop() {
    // E-AUTH.
    let cluster = Cluster::new();
    let member = cluster.start("member").await;
    let (mut seen, address) = (member.events(), address(&member).await);
    let elsewhere = Cluster::new();
    let stranger = elsewhere.builder("stranger").bootstrap([address.clone()]).start().await.unwrap();
    until("both have refused", async || refused(&member).await >= 1 && refused(&stranger).await >= 1).await;
    until("the address is marked", async || !stranger.status().await.unwrap().foreign.addresses.is_empty()).await;
    stays(Duration::from_secs(4), "it is left alone", async || {
        let nobody = member.peers().await.unwrap().is_empty() && stranger.peers().await.unwrap().is_empty();
        nobody && refused(&member).await <= 2 && refused(&stranger).await <= 2
    })
    .await;
    let foreign = stranger.status().await.unwrap().foreign;
    assert!(
        foreign.addresses.iter().any(|known| address.starts_with(known) || known.starts_with(&address)),
        "{foreign:?}"
    );
    assert_eq!((member.nodes().len(), stranger.nodes().len()), (1, 1));
    happens(&mut seen, "it is told of", |what| matches!(what, What::Foreign { .. })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_lets_a_peer_in_from_elsewhere() {
    let cluster = Cluster::new();
    let member = cluster.start("member").await;
    address(&member).await;
    let ticket = member.invite().await.unwrap();
    let parsed = meshd::Ticket::parse(&ticket.encode()).unwrap();
    assert_eq!((parsed.mesh().as_str(), parsed.epoch()), (MESH, 0));
    let guest =
        Cluster::new().builder("guest").key(parsed.key().clone()).bootstrap(parsed.addresses()).start().await.unwrap();
    see_each_other(&[member, guest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_reaches_all_linked_peers_and_loses_no_message() {
    let cluster = Cluster::new();
    let nodes = cluster.start_all(["a", "b", "c"]).await;
    let [a, b, c] = &nodes;
    let before = a.keys().await.unwrap();
    let options = ListenOptions { overflow: Overflow::Block, ..ListenOptions::default() };
    let mut messages = c.listen_with("numbers", options).await.unwrap();
    let topic = a.publisher("numbers").unwrap();
    listened_by(&topic, 1).await;
    let sending = tokio::spawn(numbers(topic));
    for seq in 1..=NUMBERS / 4 {
        assert_eq!(next(&mut messages).await.seq, seq);
    }
    let rotated = b.rotate_key(Duration::from_secs(3600), &[]).await.unwrap();
    assert_eq!(rotated.epoch, 1);
    for seq in NUMBERS / 4 + 1..=NUMBERS {
        let message = next(&mut messages).await;
        assert_eq!((message.seq, message.lagged), (seq, 0));
    }
    sending.await.unwrap();
    for node in &nodes {
        let now = keys_at_epoch(node, 1).await;
        assert_eq!(now.fingerprint, rotated.fingerprint);
        assert!(now.fingerprint != before.fingerprint && now.previous[0].0 == before.fingerprint, "{now:?}");
        assert_eq!(node.status().await.unwrap().counts.links_lost, 0);
    }
    until("all are known to hold it", async || a.peers().await.unwrap().iter().all(|peer| peer.key_epoch == 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_with_the_previous_key_in_time_is_given_the_new_one() {
    let cluster = Cluster::new();
    let [a, b] = cluster.start_all(["a", "b"]).await;
    let rotated = a.rotate_key(Duration::from_secs(3600), &[]).await.unwrap();
    keys_at_epoch(&b, 1).await;
    // One who finds the others on this host, and one who has an address.
    let near = cluster.start("near").await;
    let address = address(&a).await;
    let elsewhere = Cluster::new();
    let far = elsewhere.builder("far").key(cluster.key.clone()).bootstrap([address]).start().await.unwrap();
    for late in [&near, &far] {
        assert_eq!(keys_at_epoch(late, 1).await.fingerprint, rotated.fingerprint);
    }
    see_each_other(&[a, b, near, far]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_grace_the_old_key_is_refused_and_who_is_linked_stays() {
    let cluster = Cluster::new();
    let [a, b] = cluster.start_all(["a", "b"]).await;
    let (mut at_a, mut at_b) = (a.events(), b.events());
    let rotated = a.rotate_key(Duration::ZERO, &[]).await.unwrap();
    assert_eq!(rotated.previous, []);
    assert_eq!(keys_at_epoch(&b, 1).await.fingerprint, rotated.fingerprint);
    let address = address(&a).await;
    let late = cluster.builder("late").bootstrap([address]).start().await.unwrap();
    until("the late one is refused", async || refused(&late).await >= 1 && refused(&a).await >= 1).await;
    // Longer than linked peers have to confirm the new key.
    stays(Duration::from_millis(6500), "a and b are linked, and nobody else", async || {
        let (of_a, of_b) = (a.peers().await.unwrap(), b.peers().await.unwrap());
        let linked = of_a.len() == 1 && of_b.len() == 1 && of_a[0].peer == b.id().peer;
        linked && late.peers().await.unwrap().is_empty() && refused(&a).await + refused(&b).await <= 4
    })
    .await;
    for events in [&mut at_a, &mut at_b] {
        while let Some(Some(Ok(event))) = futures::FutureExt::now_or_never(events.next()) {
            assert!(!matches!(event.what, What::PeerDown { .. }), "{event:?}");
        }
    }
    // A ticket brings it in.
    let ticket = b.invite().await.unwrap();
    drop(late);
    let late = cluster.builder("late").key(ticket.key().clone()).start().await.unwrap();
    see_each_other(&[a, b, late]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_excluded_identity_is_shut_out_and_the_rest_goes_on() {
    let cluster = Cluster::new();
    let [a, b, out] = cluster.start_all(["a", "b", "out"]).await;
    let mut messages = b.listen("numbers").await.unwrap();
    let topic = a.publisher("numbers").unwrap();
    listened_by(&topic, 1).await;
    let mut events = b.events();
    let rotated = a.rotate_key(Duration::ZERO, &[out.identity()]).await.unwrap();
    let is_out = |peer| peer == out.id().peer;
    happens(&mut events, "b lets it go", |what| match what {
        What::PeerDown { peer, reason, .. } => {
            assert!(is_out(*peer), "{what:?}");
            assert!(matches!(reason, DownReason::ShutOut | DownReason::Closed), "{what:?}");
            true
        }
        _ => false,
    })
    .await;
    assert_eq!(keys_at_epoch(&b, 1).await.fingerprint, rotated.fingerprint);
    until("nobody is linked to it", async || out.peers().await.unwrap().is_empty()).await;
    stays(Duration::from_secs(2), "it stays out and without the new key", async || {
        let alone = out.peers().await.unwrap().is_empty() && out.nodes().len() == 1;
        let apart = a.nodes().len() == 2 && b.nodes().len() == 2;
        alone && apart && out.keys().await.unwrap().epoch == 0
    })
    .await;
    for seq in 1..=100 {
        assert_eq!(topic.send(&seq).await.unwrap().sent, 1);
        assert_eq!(next(&mut messages).await.seq, seq);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn to_shut_somebody_out_with_a_grace_time_is_an_error() {
    let cluster = Cluster::new();
    let [a, b] = cluster.start_all(["a", "b"]).await;
    let error = a.rotate_key(Duration::from_secs(60), &[b.identity()]).await.unwrap_err();
    assert!(matches!(error, RotationError::Refused(_)), "{error}");
    assert!(error.hint().unwrap().contains("--grace 0"), "{error}");
    assert_eq!(a.keys().await.unwrap().epoch, 0);
    assert!(matches!(a.reload_keys().await, Err(RotationError::NoHome)));
}

#[tokio::test(flavor = "multi_thread")]
async fn rotations_at_the_same_moment_end_in_one_key_everywhere() {
    let cluster = Cluster::new();
    let nodes = cluster.start_all(["a", "b", "c"]).await;
    let grace = Duration::from_secs(3600);
    let (first, second) = tokio::join!(nodes[0].rotate_key(grace, &[]), nodes[2].rotate_key(grace, &[]));
    assert!(first.is_ok() && second.is_ok());
    until("one key everywhere", async || {
        let mut keys = Vec::new();
        for node in &nodes {
            keys.push(node.keys().await.unwrap());
        }
        keys.iter().all(|key| key.fingerprint == keys[0].fingerprint && key.epoch == keys[0].epoch)
    })
    .await;
    // Whichever of the two epochs won: a fourth that holds the very first key still comes in.
    let late = cluster.start("late").await;
    until("it has the key", async || {
        late.keys().await.unwrap().fingerprint == nodes[0].keys().await.unwrap().fingerprint
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_keeps_key_and_identity_over_a_restart() {
    let (cluster, home) = (Cluster::new(), TempDir::new().unwrap());
    let other = cluster.start("other").await;
    let in_home = || cluster.builder("node").home(home.path());
    let node = in_home().start().await.unwrap();
    see_each_other(&[node.clone(), other.clone()]).await;
    let (identity, peer) = (node.identity(), node.id().peer);
    let rotated = other.rotate_key(Duration::from_secs(3600), &[]).await.unwrap();
    keys_at_epoch(&node, 1).await;
    node.shutdown().await;
    // The key that the program was started with is the old one; the rotation stored in the home holds.
    let node = in_home().start().await.unwrap();
    assert_eq!(node.keys().await.unwrap().fingerprint, rotated.fingerprint);
    assert!(node.identity() == identity && node.id().peer != peer);
    see_each_other(&[node, other]).await;
}

/// Numbered messages, with all the patience that it takes.
async fn numbers(topic: meshd::Publisher) {
    let options = SendOptions { target: Target::EachGroup, timeout: Some(PATIENCE), ..SendOptions::default() };
    for number in 1..=NUMBERS {
        let payload = Bytes::copy_from_slice(&number.to_be_bytes());
        let report = topic.publish(Codec::Bytes, payload, &options).await.unwrap();
        assert_eq!((report.matched, report.sent), (1, 1), "{number}");
    }
}

async fn keys_at_epoch(node: &Node, epoch: u64) -> KeyInfo {
    until("the new key is here", async || node.keys().await.unwrap().epoch >= epoch).await;
    node.keys().await.unwrap()
}

async fn refused(node: &Node) -> u64 {
    node.status().await.unwrap().foreign.refused
}

const NUMBERS: u64 = 20_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_cannot_exclude_the_machine_that_makes_it() {
    let cluster = Cluster::new();
    let [node, other] = cluster.start_all(["node", "other"]).await;
    let before = node.keys().await.unwrap();
    let refused = node.rotate_key(Duration::ZERO, &[node.identity()]).await;
    assert!(matches!(refused, Err(RotationError::Oneself)), "{refused:?}");
    assert_eq!(node.keys().await.unwrap(), before);
    assert_eq!(other.peers().await.unwrap().len(), 1);
}
