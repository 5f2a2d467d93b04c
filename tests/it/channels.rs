//! Channels: conversations of two nodes, streams of replies, ends that go from hand to hand, groups.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt, stream};
use meshd::{
    AdoptError, Callee, Channel, ChannelError, ChannelHandle, Codec, Failure, Item, Node, OpenError, OpenOptions,
    RemoteFailure,
};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::cluster::{Cluster, address, now, see_each_other, until, within};

/// Waits until so many nodes offer a service, as this one sees it.
async fn offered(node: &Node, service: &str, count: usize) {
    let offers =
        || node.nodes().iter().filter(|node| node.services.iter().any(|known| known.as_str() == service)).count();
    until("the service is offered", async || offers() == count).await;
}

async fn open(node: &Node, service: &str) -> Channel {
    offered(node, service, 1).await;
    within("a channel opens", node.open(service)).await.unwrap()
}

async fn receive<T: serde::de::DeserializeOwned>(channel: &Channel) -> Option<T> {
    within("something comes", channel.receive()).await.unwrap()
}

/// Gives back all that it gets.
async fn echo(channel: Channel) -> Result<(), Failure> {
    while let Some(item) = channel.next().await? {
        channel.send_item(item).await?;
    }
    Ok(())
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Reading {
    sensor: String,
    value: i64,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_in_comes_back_and_the_end_comes_again_and_again() {
    // X-CH: typed items, all kinds of content, waiting that is given up, the end every time, writing to a closed channel, freed ends.
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let service = there.serve_channels("echo", echo).await.unwrap();
    let channel = open(&here, "echo").await;
    assert_eq!(channel.far(), there.id());
    let nothing = tokio::time::timeout(Duration::from_millis(5), channel.next()).await;
    assert!(nothing.is_err(), "nothing came, and it goes on");
    let closed = tokio::time::timeout(Duration::from_millis(5), channel.closed()).await;
    assert!(closed.is_err(), "nor is it closed");
    assert_eq!(channel.try_next(), None);
    let reading = Reading { sensor: "left".into(), value: i64::MIN };
    channel.send(&reading).await.unwrap();
    assert_eq!(receive::<Reading>(&channel).await, Some(reading));
    channel.send_bytes(vec![7; 1 << 20]).await.unwrap();
    let large = within("it comes back", channel.next()).await.unwrap().unwrap();
    assert_eq!((large.codec, large.payload.len()), (Codec::Bytes, 1 << 20));
    channel.send(&"text").await.unwrap();
    let wrong = within("it comes", channel.receive::<u32>()).await;
    assert!(matches!(wrong, Err(ChannelError::Decode(_))), "{wrong:?}");
    let too_large = channel.send_bytes(vec![0; (64 << 20) + 1]).await;
    assert!(matches!(too_large, Err(ChannelError::TooLarge { .. })), "{too_large:?}");
    for number in 0..100 {
        channel.send(&number).await.unwrap();
    }
    channel.finish();
    for number in 0..100 {
        assert_eq!(receive::<u32>(&channel).await, Some(number), "it goes on after what failed");
    }
    for _ in 0..3 {
        assert_eq!(receive::<u32>(&channel).await, None);
        assert_eq!(channel.try_next(), Some(Ok(None)));
    }
    within("it is closed", channel.closed()).await.unwrap();
    assert_eq!(channel.send(&1).await, Err(ChannelError::Closed));
    drop(service);
    until("nobody offers it", async || matches!(here.open("echo").await, Err(OpenError::NoProvider(_)))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_one_process_speak_with_each_other() {
    let cluster = Cluster::new();
    let here = cluster.start("here").await;
    let there = here.sibling("there").await.unwrap();
    let mut acceptor = there.accept("talk").await.unwrap();
    let request = Item { codec: Codec::Text, payload: "hello".into() };
    let options = OpenOptions { request: request.clone(), ..OpenOptions::default() };
    let ours = within("it opens", here.open_with("talk", options)).await.unwrap();
    let theirs = within("it comes", acceptor.next()).await.unwrap();
    assert_eq!((theirs.far(), theirs.request()), (here.id(), Some(&request)));
    ours.send(&1).await.unwrap();
    assert_eq!(receive(&theirs).await, Some(1));
    drop(theirs);
    assert_eq!(receive::<u32>(&ours).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_then_an_error_both_arrive() {
    // X-CH: value, then error; a panic is the caller's error; errors with kind and text, again and again.
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let _service = there
        .serve_channels("fail", async |channel: Channel| {
            let how: u32 = channel.receive().await?.unwrap();
            channel.send(&how).await?;
            assert!(how == 1, "no {how}");
            Err(Failure::new("bad", "it did not work"))
        })
        .await
        .unwrap();
    for (how, kind, text) in [(1, "bad", "it did not work"), (2, "panicked", "no 2")] {
        let channel = open(&here, "fail").await;
        channel.send(&how).await.unwrap();
        assert_eq!(receive(&channel).await, Some(how));
        let failed = ChannelError::Failed(RemoteFailure { node: there.id(), failure: Failure::new(kind, text) });
        for _ in 0..3 {
            assert_eq!(within("the error", channel.next()).await, Err(failed.clone()));
        }
        assert_eq!(within("closed", channel.closed()).await, Err(failed.clone()));
        assert_eq!(channel.send(&1).await, Err(failed.clone()));
        let mut channel = channel;
        assert_eq!(StreamExt::next(&mut channel).await, Some(Err(failed)));
        assert_eq!(StreamExt::next(&mut channel).await, None, "a stream ends after its error");
    }
}

/// A generator that says how far it is and whether it lives.
fn counting<S>(
    made: &Arc<AtomicU64>,
    lives: &Arc<AtomicBool>,
    numbers: S,
) -> impl Stream<Item = Result<u64, Failure>> + use<S>
where
    S: Stream<Item = u64>,
{
    struct Alive(Arc<AtomicBool>);
    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.store(false, Ordering::SeqCst);
        }
    }
    lives.store(true, Ordering::SeqCst);
    let (made, alive) = (Arc::clone(made), Alive(Arc::clone(lives)));
    numbers.map(move |number| {
        assert!(alive.0.load(Ordering::SeqCst));
        made.store(number + 1, Ordering::SeqCst);
        Ok(number)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn many_replies_reach_a_slow_and_then_fast_reader_and_are_never_far_ahead() {
    // P-4: a stream of items and its end.
    const REPLIES: u64 = 100_000;
    /// A window of 256 KiB, of which each item takes 64 bytes and its own.
    const AHEAD: u64 = (256 << 10) / 65 + 2;
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let (made, lives) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (making, living) = (Arc::clone(&made), Arc::clone(&lives));
    let _service = there
        .serve_stream("count", move |until: u64| counting(&making, &living, stream::iter(0..until)))
        .await
        .unwrap();
    offered(&here, "count", 1).await;
    let mut replies = within("it begins", here.call_stream::<_, u64>("count", &REPLIES)).await.unwrap();
    let mut furthest = 0;
    for number in 0..REPLIES {
        if number < 100 {
            // Slow at first: the generator runs ahead as far as it may, and waits.
            until("it is ahead", async || made.load(Ordering::SeqCst) > 2000 + number).await;
        }
        assert_eq!(within("a reply", replies.next()).await, Some(Ok(number)));
        furthest = furthest.max(made.load(Ordering::SeqCst) - number);
    }
    assert_eq!(within("the end", replies.next()).await, None);
    assert_eq!(replies.next().await, None);
    println!("{furthest} ahead at most");
    assert!(furthest <= AHEAD, "{furthest}");
    until("the generator is gone", async || !lives.load(Ordering::SeqCst)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generator_stops_when_nobody_wants_its_replies() {
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let (made, lives) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    for waits in [true, false] {
        let (making, living) = (Arc::clone(&made), Arc::clone(&lives));
        let generator = move |(): ()| {
            // Either it waits for ever after some replies, or it makes more than there is room for.
            let numbers = stream::iter(0..if waits { 10 } else { u64::MAX });
            counting(&making, &living, numbers.chain(stream::pending()))
        };
        let service = there.serve_stream("count", generator).await.unwrap();
        offered(&here, "count", 1).await;
        let mut replies = within("it begins", here.call_stream::<_, u64>("count", &())).await.unwrap();
        for number in 0..10 {
            assert_eq!(within("a reply", replies.next()).await, Some(Ok(number)));
        }
        assert!(lives.load(Ordering::SeqCst));
        let dropped = now();
        drop(replies);
        until("it stops", async || !lives.load(Ordering::SeqCst)).await;
        println!("stopped after {:?}", dropped.elapsed());
        assert!(dropped.elapsed() < Duration::from_millis(100), "{:?}", dropped.elapsed());
        drop(service);
        offered(&here, "count", 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_fails_says_so_after_its_replies() {
    // P-4: a generator with arguments, items and the end; a request that it does not take.
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let sensor = |(count, value): (u32, i64)| {
        let readings = (0..count).map(move |n| Ok(Reading { sensor: format!("s{n}"), value }));
        stream::iter(readings.chain([Err(Failure::new("worn out", "no more"))]))
    };
    let _service = there.serve_stream("sensor", sensor).await.unwrap();
    offered(&here, "sensor", 1).await;
    let replies = within("it begins", here.call_stream::<_, Reading>("sensor", &(4, 55))).await.unwrap();
    let all: Vec<_> = within("all come", replies.collect()).await;
    assert_eq!(all.len(), 5);
    assert_eq!(all[3], Ok(Reading { sensor: "s3".into(), value: 55 }));
    assert!(matches!(&all[4], Err(ChannelError::Failed(failed)) if failed.failure.kind == "worn out"), "{all:?}");
    let mut replies = within("it begins", here.call_stream::<_, Reading>("sensor", &"four")).await.unwrap();
    let refused = within("an answer", replies.next()).await;
    assert!(
        matches!(&refused, Some(Err(ChannelError::Failed(failed))) if failed.failure.kind == Failure::BAD_REQUEST),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_to_a_channel_that_nobody_reads_waits() {
    // X-CH. Elsewhere, 200 items of 100 KB were taken in 0.03 s and kept in memory. A waiting channel holds up no other.
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let mut acceptor = there.accept("talk").await.unwrap();
    let silent = open(&here, "talk").await;
    let other = open(&here, "talk").await;
    let (unread, read) = (acceptor.next().await.unwrap(), acceptor.next().await.unwrap());
    let taken = Arc::new(AtomicU64::new(0));
    let sending = {
        let (taken, silent) = (Arc::clone(&taken), silent.clone());
        tokio::spawn(async move {
            for _ in 0..200 {
                silent.send_bytes(vec![0; 100_000]).await.unwrap();
                taken.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    until("it has begun", async || taken.load(Ordering::SeqCst) >= 3).await;
    for number in 0..1000 {
        other.send(&number).await.unwrap();
        assert_eq!(receive(&read).await, Some(number));
    }
    assert_eq!(taken.load(Ordering::SeqCst), 3, "as many as go over 256 KiB");
    for _ in 0..200 {
        assert_eq!(within("an item", unread.next()).await.unwrap().unwrap().payload.len(), 100_000);
    }
    within("all is sent", sending).await.unwrap();
    // A send that was given up is not sent.
    for _ in 0..3 {
        silent.send_bytes(vec![1; 100_000]).await.unwrap();
    }
    let given_up = tokio::time::timeout(Duration::from_millis(20), silent.send_bytes("never")).await;
    assert!(given_up.is_err());
    silent.close();
    let mut rest = 0;
    while let Some(item) = within("the rest", unread.next()).await.unwrap() {
        assert_eq!(item.payload[0], 1);
        rest += 1;
    }
    assert_eq!(rest, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_asked_for_the_wrong_thing_says_what_would_be_right() {
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    assert!(matches!(here.open("nothing").await, Err(OpenError::NoProvider(_))));
    assert!(matches!(here.open("no\ttab").await, Err(OpenError::Name(_))));
    let _service = there.serve_channels("echo", echo).await.unwrap();
    assert!(there.accept("echo").await.is_err(), "offered already");
    offered(&here, "echo", 1).await;
    let to = |callee| OpenOptions { callee, ..OpenOptions::default() };
    let to_group = |name: &str| to(Callee::Group(meshd::NodeName::new(name).unwrap()));
    assert!(matches!(here.open_with("echo", to(Callee::Node(here.id()))).await, Err(OpenError::NotOffered { .. })));
    assert!(matches!(here.open_with("echo", to_group("nobody")).await, Err(OpenError::NoSuchNode(_))));
    within("by name", here.open_with("echo", to_group("there"))).await.unwrap();
    within("by id", here.open_with("echo", to(Callee::Node(there.id())))).await.unwrap();
    // A line of 64 that nobody accepts: then busy, until one is accepted.
    let mut acceptor = there.accept("line").await.unwrap();
    offered(&here, "line", 1).await;
    let mut waiting = Vec::new();
    let refused = loop {
        match within("an answer", here.open("line")).await {
            Ok(channel) => waiting.push(channel),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, OpenError::Busy(_)), "{refused}");
    assert_eq!(waiting.len(), 64);
    let first = acceptor.next().await.unwrap();
    waiting.push(within("room again", here.open("line")).await.unwrap());
    drop(acceptor);
    assert_eq!(receive::<u32>(&waiting[64]).await, None, "what was not accepted is closed");
    first.send(&1).await.unwrap();
    assert_eq!(receive(&waiting[0]).await, Some(1), "what was accepted goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_stops_waiting_for_a_service_to_be_offered_can_offer_it_again() {
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let mut given_up = 0;
    for _ in 0..20 {
        given_up += u32::from(there.accept("speak").now_or_never().is_none());
    }
    assert!(given_up > 0);
    let mut acceptor = there.accept("speak").await.unwrap();
    let opened = open(&here, "speak").await;
    let accepted = within("it is accepted", acceptor.next()).await.unwrap();
    accepted.send(&1).await.unwrap();
    assert_eq!(receive(&opened).await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_channels_to_a_peer_are_open_at_once_and_not_one_more() {
    // X-CH.
    const MOST: usize = 1000;
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let _service = there.serve_channels("echo", echo).await.unwrap();
    offered(&here, "echo", 1).await;
    let began = now();
    let mut channels = Vec::new();
    for number in 0..MOST {
        let opening = async {
            loop {
                match here.open("echo").await {
                    Err(OpenError::Busy(_)) => tokio::task::yield_now().await, // as many as may wait to be accepted
                    opened => return opened.unwrap(),
                }
            }
        };
        let channel = within("it opens", opening).await;
        channel.send(&number).await.unwrap();
        channels.push(channel);
    }
    let refused = here.open("echo").await;
    assert!(matches!(refused, Err(OpenError::TooMany(_))), "{refused:?}");
    for (number, channel) in channels.iter().enumerate() {
        assert_eq!(receive(channel).await, Some(number));
    }
    println!("{MOST} channels in {:?}", began.elapsed());
    channels.truncate(MOST - 10);
    until("room again", async || here.open("echo").await.is_ok()).await;
}

/// Sends the numbers from `from` on, and gives how many, until it is told to stop.
async fn count_into(channel: &Channel, from: u64, stop: &Notify) -> u64 {
    let mut number = from;
    loop {
        tokio::select! {
            biased;
            () = stop.notified() => return number,
            sent = channel.send(&number) => sent.unwrap(),
        }
        number += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_goes_from_hand_to_hand_and_loses_nothing() {
    // X-CH: channels in messages; a sub-channel outlives its parent. Over two other nodes, one of which is then shut down.
    let cluster = Cluster::new();
    let [here, first, second, there] = cluster.start_all(["here", "first", "second", "there"]).await;
    let mut acceptor = there.accept("talk").await.unwrap();
    let talk = open(&first, "talk").await;
    let far = within("it comes", acceptor.next()).await.unwrap();
    // Both ways, items are on their way all the time.
    let (received, mut sees) = watch::channel(0u64);
    let stop = Arc::new(Notify::new());
    let answers = {
        let (stop, far) = (Arc::clone(&stop), far.clone());
        tokio::spawn(async move { count_into(&far, 0, &stop).await })
    };
    let reading = tokio::spawn(async move {
        let mut expected = 0;
        while let Some(number) = within("an item", far.receive::<u64>()).await.unwrap() {
            assert_eq!(number, expected);
            expected += 1;
            received.send_replace(expected);
        }
        expected
    });
    let (mut sent, mut taken) = (0u64, 0u64);
    let mut first_acceptor = first.accept("first").await.unwrap();
    let mut second_acceptor = second.accept("second").await.unwrap();
    let mut here_acceptor = here.accept("here").await.unwrap();
    let mut speak = async |talk: &Channel| {
        for _ in 0..500 {
            talk.send(&sent).await.unwrap();
            sent += 1;
            assert_eq!(receive(talk).await, Some(taken), "nothing is lost or comes twice");
            taken += 1;
        }
    };
    speak(&talk).await;
    // From first to second, to here, back to first, and to here again.
    let pass = async |talk: Channel, from: &Node, to: &Node, service: &str, acceptor: &mut meshd::Acceptor| {
        let way = open(from, service).await;
        way.send(&(7, talk.into_handle())).await.unwrap();
        let arrived = within("a way", acceptor.next()).await.unwrap();
        let (_, handle): (u32, ChannelHandle) = receive(&arrived).await.unwrap();
        within("it is adopted", to.adopt(handle)).await.unwrap()
    };
    let talk = pass(talk, &first, &second, "second", &mut second_acceptor).await;
    speak(&talk).await;
    assert_eq!(talk.far(), there.id());
    let talk = pass(talk, &second, &here, "here", &mut here_acceptor).await;
    speak(&talk).await;
    let talk = pass(talk, &here, &first, "first", &mut first_acceptor).await;
    speak(&talk).await;
    let talk = pass(talk, &first, &here, "here", &mut here_acceptor).await;
    drop((first_acceptor, second_acceptor));
    within("it leaves", second.shutdown()).await;
    within("it leaves", first.shutdown()).await;
    speak(&talk).await;
    stop.notify_one();
    let made = within("it stops", answers).await.unwrap();
    while taken < made {
        assert_eq!(receive(&talk).await, Some(taken));
        taken += 1;
    }
    within("all is received", sees.wait_for(|seen| *seen == sent)).await.unwrap();
    talk.close();
    assert_eq!(within("the end", reading).await.unwrap(), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_that_comes_back_and_one_for_the_far_ends_own_process_work() {
    // X-CH: one's own channel sent back. And what does not: twice, at the same time from both ends.
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let mut acceptor = there.accept("talk").await.unwrap();
    let ours = open(&here, "talk").await;
    let theirs = within("it comes", acceptor.next()).await.unwrap();
    ours.send(&1).await.unwrap();
    theirs.send(&2).await.unwrap();
    let handle = ours.into_handle();
    assert!(!format!("{handle:?}").contains("token"), "a secret");
    let ours = within("adopted", here.adopt(handle.clone())).await.unwrap();
    let again = within("an answer", here.adopt(handle)).await;
    assert!(matches!(again, Err(AdoptError::NotThere(_))), "{again:?}");
    assert_eq!((receive(&ours).await, receive(&theirs).await), (Some(2), Some(1)));
    // Both ends in one process.
    ours.send(&3).await.unwrap();
    theirs.send(&4).await.unwrap();
    let ours = within("adopted", there.adopt(ours.into_handle())).await.unwrap();
    ours.send(&5).await.unwrap();
    assert_eq!((receive(&theirs).await, receive(&theirs).await), (Some(3), Some(5)));
    assert_eq!(receive(&ours).await, Some(4));
    assert_eq!((ours.far(), theirs.far()), (there.id(), there.id()));
    // Then the other end goes, too, with items that it did not take and that came from different holders.
    ours.send(&6).await.unwrap();
    let ours = within("adopted", here.adopt(ours.into_handle())).await.unwrap();
    ours.send(&7).await.unwrap();
    let theirs = within("adopted", here.adopt(theirs.into_handle())).await.unwrap();
    assert_eq!((receive(&theirs).await, receive(&theirs).await), (Some(6), Some(7)));
    // Both at the same time: an error that says so, or that nobody is there.
    let (one, other) = (ours.into_handle(), theirs.into_handle());
    for handle in [one, other] {
        let refused = within("an answer", here.adopt(handle)).await;
        assert!(matches!(refused, Err(AdoptError::BothHandedOver | AdoptError::NotThere(_))), "{refused:?}");
    }
    // A channel that is over is handed over as that.
    let ours = open(&here, "talk").await;
    within("it comes", acceptor.next()).await.unwrap().close_with(Failure::new("k", "t"));
    assert!(within("closed", ours.closed()).await.is_err());
    let ours = within("adopted", there.adopt(ours.into_handle())).await.unwrap();
    assert!(matches!(ours.next().await, Err(ChannelError::Failed(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_has_one_queue_and_one_end_for_each_member() {
    // X-GRP: a channel to each, one queue that says who, the end of each once, also of one that dies; the first error.
    let cluster = Cluster::new();
    let [here, a, b, c] = cluster.start_all(["here", "worker", "worker", "worker"]).await;
    let double = async |channel: Channel| {
        while let Some(number) = channel.receive::<u32>().await? {
            channel.send(&(2 * number)).await?;
            if number == 3 {
                return Err(Failure::new("three", "too much"));
            }
        }
        Ok(())
    };
    let mut services = Vec::new();
    for node in [&a, &b, &c] {
        services.push(node.serve_channels("double", double).await.unwrap());
    }
    offered(&here, "double", 3).await;
    let mut group = within("it opens", here.open_all("double")).await.unwrap();
    assert_eq!((group.members().len(), group.refused().len()), (3, 0));
    assert_eq!(within("sent", group.send_each(&1)).await, Ok(vec![]));
    let killed = c.id();
    for _ in 0..3 {
        let (_, item) = within("an answer", group.next()).await.unwrap();
        assert_eq!(item.unwrap().unwrap().decode(), Ok(2));
    }
    within("it leaves", c.shutdown()).await;
    let (who, end) = within("an end", group.next()).await.unwrap();
    assert!(who == killed && !matches!(end, Ok(Some(_))), "{who:?} {end:?}");
    let not_sent = within("sent", group.send_each(&3)).await.unwrap();
    assert_eq!(not_sent.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [killed]);
    let mut ends = Vec::new();
    while let Some((who, item)) = within("an answer or end", group.next()).await {
        match item {
            Ok(Some(item)) => assert_eq!(item.decode(), Ok(6)),
            Ok(None) => panic!("it failed"),
            Err(ChannelError::Failed(failed)) => ends.push((who, failed.failure.kind)),
            Err(error) => panic!("{error}"),
        }
    }
    ends.sort_unstable();
    let mut expected = [(a.id(), "three".to_owned()), (b.id(), "three".to_owned())];
    expected.sort_unstable();
    assert_eq!(ends, expected);
    assert!(within("closed", group.closed()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_other_peer_leaves_the_channel_ends_with_that() {
    // X-CH.
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let mut acceptor = there.accept("talk").await.unwrap();
    let ours = open(&here, "talk").await;
    let theirs = within("it comes", acceptor.next()).await.unwrap();
    theirs.send(&1).await.unwrap();
    within("it leaves", there.clone().shutdown()).await;
    assert_eq!(within("an end", theirs.next()).await, Err(ChannelError::Shutdown));
    assert!(within("an end", acceptor.next()).await.is_none());
    assert_eq!(receive(&ours).await, Some(1), "what came before is received");
    let gone = within("an end", ours.next()).await;
    assert_eq!(gone, Err(ChannelError::Disconnected(there.id())));
    assert_eq!(ours.next().await, gone);
}

/// Carries connections to an address, and cuts them all when told to.
struct Carrier {
    address: SocketAddr,
    cut: watch::Sender<()>,
    _tasks: JoinSet<()>,
}

impl Carrier {
    async fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, cuts) = watch::channel(());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut from, _)) = listener.accept().await {
                let mut cuts = cuts.clone();
                connections.spawn(async move {
                    cuts.mark_unchanged();
                    let Ok(mut to) = TcpStream::connect(to).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, cut, _tasks: tasks }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_link_that_is_cut_nothing_is_lost_or_comes_twice() {
    // X-CH.
    let cluster = Cluster::new();
    let there = cluster.builder("there").local(false).kad(false).start().await.unwrap();
    let port: SocketAddr = {
        let address = address(&there).await;
        let port = address.rsplit('/').next().unwrap().to_owned();
        format!("127.0.0.1:{port}").parse().unwrap()
    };
    let _service = there.serve_channels("echo", echo).await.unwrap();
    for round in 0..3 {
        // The first link of each peer goes through the carrier; the next one where it likes.
        let carrier = Carrier::new(port).await;
        let here = cluster.builder("here").local(false).kad(false).bootstrap([carrier.address.to_string()]);
        let here = here.start().await.unwrap();
        let nodes = [here.clone(), there.clone()];
        see_each_other(&nodes).await;
        offered(&here, "echo", 1).await;
        let mut events = here.events();
        let channels: Vec<Channel> = {
            let mut channels = Vec::new();
            for _ in 0..4 {
                channels.push(within("it opens", here.open("echo")).await.unwrap());
            }
            channels
        };
        let (progress, mut made) = mpsc::channel(1);
        let mut speaking = JoinSet::new();
        for channel in channels {
            let progress = progress.clone();
            speaking.spawn(async move {
                let sending = async {
                    for number in 0..6000u32 {
                        channel.send(&(number, vec![0u8; (number as usize * 7) % 300])).await.unwrap();
                    }
                    channel.finish();
                };
                let receiving = async {
                    for number in 0..6000u32 {
                        let (received, _): (u32, Vec<u8>) = receive(&channel).await.unwrap();
                        assert_eq!(received, number);
                        if number == 1500 {
                            let _ = progress.send(()).await; // only the first of them cuts
                        }
                    }
                    assert_eq!(receive::<(u32, Vec<u8>)>(&channel).await, None);
                };
                tokio::join!(sending, receiving);
            });
        }
        within("items flow", made.recv()).await.unwrap();
        carrier.cut.send_replace(());
        let down = |what: &meshd::What| matches!(what, meshd::What::PeerDown { .. });
        crate::cluster::happens(&mut events, "the link is lost", down).await;
        drop(made);
        while let Some(spoken) = within("all is said", speaking.join_next()).await {
            spoken.unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
        here.shutdown().await;
    }
}

/// How fast items go through: `cargo test --release --test it channel_speed -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and checks nothing"]
async fn channel_speed() {
    const ITEMS: u64 = 500_000;
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let items = |count: u64| stream::iter((0..count).map(|_| Ok(serde_bytes())));
    let _service = there.serve_stream("items", items).await.unwrap();
    offered(&here, "items", 1).await;
    let mut replies = here.call_stream::<_, bytes::Bytes>("items", &ITEMS).await.unwrap();
    let began = now();
    let mut count = 0;
    while let Some(item) = replies.next().await {
        assert_eq!(item.unwrap().len(), 100);
        count += 1;
    }
    assert_eq!(count, ITEMS);
    println!("{:.0} items/s", ITEMS as f64 / began.elapsed().as_secs_f64());
}

fn serde_bytes() -> bytes::Bytes {
    bytes::Bytes::from_static(&[7; 100])
}
