//! Multicast DNS: announces this peer under a service type per mesh tag, and hears of others under the same types.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::time::Duration;

use futures::StreamExt;
use futures::future::ready;
use futures::stream::{BoxStream, SelectAll, once};
use libp2p::Multiaddr;
use mdns_sd::{DaemonEvent, IfKind, MDNS_PORT, Receiver, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_reuseaddr, set_socket_reuseport};
use rustix::net::{AddressFamily, SocketType, bind, socket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::{Found, Source, is_dialable};
use crate::mesh::PeerId;

/// How to use multicast.
#[derive(Clone, Debug, Default)]
pub(crate) struct MdnsConfig {
    /// Also over the loopback interface: peers of one host then hear of each other by multicast with no network up.
    pub(crate) loopback: bool,
    /// The names of the interfaces to use; empty means all.
    pub(crate) interfaces: Vec<String>,
    /// Another UDP port than 5353: a world of its own, for tests.
    pub(crate) port: Option<u16>,
}

/// This peer on multicast DNS. Dropping it says goodbye too; [`shutdown`](Self::shutdown) also waits until that is said.
#[derive(Debug)]
pub(crate) struct Mdns {
    wanted: watch::Sender<Wanted>,
    state: watch::Receiver<String>,
    task: JoinHandle<()>,
}

/// What to announce and to look for. The latest wins; nothing queues up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    tags: Vec<String>,
    /// 0: nobody can dial this peer, so it only looks.
    port: u16,
}

impl Mdns {
    /// Starts to look for other peers under each tag, which `found` then hears of.
    ///
    /// When `found` is full, what was heard waits in bounded queues, and is asked for anew if those overflow.
    /// Must be called in a tokio runtime.
    pub(crate) fn start(
        me: PeerId,
        started: u64,
        tags: Vec<String>,
        config: MdnsConfig,
        found: mpsc::Sender<Found>,
    ) -> Self {
        let (wanted, orders) = watch::channel(Wanted { tags, port: 0 });
        let (report, state) = watch::channel("starting".to_owned());
        let task = tokio::spawn(Worker { me, started, config, found, report }.run(orders));
        Self { wanted, state, task }
    }

    /// Announces this TCP port from now on; 0 takes the announcement back.
    pub(crate) fn set_port(&self, port: u16) {
        self.wanted.send_if_modified(|wanted| std::mem::replace(&mut wanted.port, port) != port);
    }

    /// Announces and looks under these tags from now on.
    pub(crate) fn set_tags(&self, tags: Vec<String>) {
        self.wanted.send_if_modified(|wanted| {
            let news = wanted.tags != tags;
            wanted.tags = tags;
            news
        });
    }

    /// `ok`, or what keeps multicast from working.
    pub(crate) fn status(&self) -> String {
        self.state.borrow().clone()
    }

    /// Says goodbye, so that others need not wait for the records to expire. Takes [`GOODBYE`] at most.
    pub(crate) async fn shutdown(self) {
        let Self { wanted, task, .. } = self;
        drop(wanted);
        if timeout(GOODBYE, task).await.is_err() {
            debug!("no time for the mDNS goodbye");
        }
    }
}

/// The task behind [`Mdns`]: opens sessions until nobody wants one.
struct Worker {
    me: PeerId,
    started: u64,
    config: MdnsConfig,
    found: mpsc::Sender<Found>,
    report: watch::Sender<String>,
}

/// Why a session ended.
enum End {
    /// Nobody wants it any more.
    Stopped,
    /// The thread behind it is gone.
    Broken(String),
}

impl Worker {
    async fn run(self, mut orders: watch::Receiver<Wanted>) {
        let mut delay = RETRY_MIN;
        let mut warned = false;
        loop {
            let reason = match Session::open(&self) {
                Ok(session) => {
                    if warned {
                        info!("mDNS works now");
                    }
                    (delay, warned) = (RETRY_MIN, false);
                    self.report.send_replace("ok".to_owned());
                    match session.run(&mut orders).await {
                        End::Stopped => return,
                        End::Broken(reason) => reason,
                    }
                }
                Err(reason) => reason,
            };
            if !std::mem::replace(&mut warned, true) {
                warn!("no discovery by mDNS: {reason}");
            }
            self.report.send_replace(reason);
            tokio::select! {
                () = sleep(delay) => delay = (delay * 2).min(RETRY_MAX),
                () = closed(&mut orders) => return,
            }
        }
    }
}

/// One run of the multicast thread, and what was asked of it.
struct Session<'a> {
    worker: &'a Worker,
    thread: Thread,
    errors: Receiver<DaemonEvent>,
    /// What is registered now: the port it was registered with, by service type.
    announced: HashMap<String, u16>,
    events: SelectAll<BoxStream<'static, (String, Option<ServiceEvent>)>>,
    browsed: Vec<String>,
    /// Heard, and not yet taken by the receiver of `found`.
    pending: Option<Found>,
}

impl<'a> Session<'a> {
    fn open(worker: &'a Worker) -> Result<Self, String> {
        let port = worker.config.port.unwrap_or(MDNS_PORT);
        probe(port)?;
        let text = |error: mdns_sd::Error| error.to_string();
        let thread = Thread(ServiceDaemon::new_with_port(port).map_err(text)?);
        let errors = thread.0.monitor().map_err(text)?;
        if !worker.config.interfaces.is_empty() {
            thread.0.disable_interface(IfKind::All).map_err(text)?;
            let named: Vec<IfKind> = worker.config.interfaces.iter().map(IfKind::from).collect();
            thread.0.enable_interface(named).map_err(text)?;
        }
        if !worker.config.loopback {
            thread.0.disable_interface(vec![IfKind::LoopbackV4, IfKind::LoopbackV6]).map_err(text)?;
        }
        let (announced, events) = (HashMap::new(), SelectAll::new());
        Ok(Self { worker, thread, errors, announced, events, browsed: Vec::new(), pending: None })
    }

    async fn run(mut self, orders: &mut watch::Receiver<Wanted>) -> End {
        let mut wanted = orders.borrow_and_update().clone();
        let mut again = None;
        loop {
            if let Err(error) = self.follow(&wanted) {
                if matches!(error, mdns_sd::Error::DaemonShutdown) {
                    return End::Broken("the mDNS thread ended".to_owned());
                }
                // Its queue of commands is full, which passes, or the tag is no name, which the log has to tell.
                debug!(%error, "mDNS command");
                again = Some(RETRY_MIN);
            }
            tokio::select! {
                changed = orders.changed() => match changed {
                    Ok(()) => wanted = orders.borrow_and_update().clone(),
                    Err(_) => break,
                },
                Some((service, event)) = self.events.next(), if self.pending.is_none() => self.on_event(&service, event),
                permit = self.worker.found.reserve(), if self.pending.is_some() => match permit {
                    Ok(permit) => drop(self.pending.take().map(|found| permit.send(found))),
                    Err(_) => break,
                },
                event = self.errors.recv_async() => match event {
                    Ok(DaemonEvent::Error(error)) => debug!(%error, "mDNS"),
                    Ok(_) => {}
                    Err(_) => return End::Broken("the mDNS thread ended".to_owned()),
                },
                () = sleep(again.unwrap_or(RETRY_MAX)), if again.is_some() => again = None,
            }
        }
        self.thread.end().await;
        End::Stopped
    }

    /// Brings what the thread does in line with what is wanted.
    fn follow(&mut self, wanted: &Wanted) -> mdns_sd::Result<()> {
        let services: Vec<String> = wanted.tags.iter().map(|tag| service(tag)).collect();
        let daemon = &self.thread.0;
        for left in self.browsed.extract_if(.., |known| !services.contains(known)) {
            daemon.stop_browse(&left)?;
        }
        let to_leave = |service: &String| wanted.port == 0 || !services.contains(service);
        for (left, _) in self.announced.extract_if(|service, _| to_leave(service)) {
            daemon.unregister(&format!("{}.{left}", label(self.worker.me)))?;
        }
        for service in services {
            if wanted.port != 0 && self.announced.get(&service) != Some(&wanted.port) {
                daemon.register(self.worker.announcement(&service, wanted.port)?)?;
                self.announced.insert(service.clone(), wanted.port);
            }
            if !self.browsed.contains(&service) {
                let events = daemon.browse(&service)?.into_stream().map(Some).chain(once(ready(None)));
                let name = service.clone();
                self.events.push(events.map(move |event| (name.clone(), event)).boxed());
                self.browsed.push(service);
            }
        }
        Ok(())
    }

    fn on_event(&mut self, service: &str, event: Option<ServiceEvent>) {
        match event {
            Some(ServiceEvent::ServiceResolved(resolved)) => self.pending = self.worker.found(&resolved),
            Some(event) => debug!(?event, "mDNS"),
            // The queue of events overflowed. Asking again tells everything that the thread remembers.
            None => self.browsed.retain(|known| known != service),
        }
    }
}

impl Worker {
    fn announcement(&self, service: &str, port: u16) -> mdns_sd::Result<ServiceInfo> {
        let label = label(self.me);
        let text = [("p", self.me.to_string()), ("s", self.started.to_string())];
        // A host name of its own: several peers on one host may listen on different addresses.
        let host = format!("{label}.local.");
        let mut info = ServiceInfo::new(service, &label, &host, (), port, &text[..])?.enable_addr_auto();
        // Probing takes 750 ms and looks for others of the same name; this one is a public key.
        info.set_requires_probe(false);
        Ok(info)
    }

    /// What a service says, if it is another peer that can be dialled.
    fn found(&self, resolved: &ResolvedService) -> Option<Found> {
        let peer: PeerId = resolved.get_property_val_str("p")?.parse().ok()?;
        if peer == self.me {
            return None;
        }
        let started = resolved.get_property_val_str("s").and_then(|text| text.parse().ok()).unwrap_or(0);
        let ips = resolved.get_addresses().iter().map(mdns_sd::ScopedIp::to_ip_addr).collect();
        let addresses = addresses(ips, resolved.get_port(), self.config.loopback);
        (!addresses.is_empty()).then_some(Found { peer: Some(peer), addresses, source: Source::Mdns, started })
    }
}

/// The multicast thread. Ends with this value: by itself it would run on.
struct Thread(ServiceDaemon);

impl Thread {
    /// Says goodbye and waits until it is said.
    async fn end(&self) {
        if let Ok(ended) = self.0.shutdown() {
            drop(ended.recv_async().await);
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.0.shutdown()); // puts a command into a queue; an error says that the thread has ended
    }
}

/// Resolves when nobody can change what is wanted any more.
async fn closed(orders: &mut watch::Receiver<Wanted>) {
    while orders.changed().await.is_ok() {}
}

/// The addresses worth a dial: IPv4 first, each once, not more than anybody needs.
fn addresses(mut ips: Vec<IpAddr>, port: u16, loopback: bool) -> Vec<Multiaddr> {
    // A link-local IPv6 address means nothing without an interface, which a multiaddr for TCP cannot carry. Often it
    // comes alone, a few milliseconds before the others; a dial that must fail would only delay the one that works.
    let needs_zone = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    ips.retain(|ip| (loopback || !ip.is_loopback()) && !needs_zone(ip));
    let rank = |ip: &IpAddr| (ip.is_ipv6(), matches!(ip, IpAddr::V4(ip) if ip.is_link_local()), *ip);
    ips.sort_by_key(rank);
    ips.dedup();
    let address = |ip: IpAddr| Multiaddr::from(ip).with(libp2p::multiaddr::Protocol::Tcp(port));
    ips.into_iter().map(address).filter(is_dialable).take(MAX_ADDRESSES).collect()
}

/// Whether the port can be shared. The library tells nobody when it cannot bind, so the same bind is tried here first.
fn probe(port: u16) -> Result<(), String> {
    let try_bind = |family| -> Result<(), Errno> {
        let socket = socket(family, SocketType::DGRAM, None)?;
        set_socket_reuseaddr(&socket, true)?;
        set_socket_reuseport(&socket, true)?;
        match family {
            AddressFamily::INET => bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)),
            _ => bind(&socket, &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0)),
        }
    };
    match (try_bind(AddressFamily::INET), try_bind(AddressFamily::INET6)) {
        (Err(Errno::ADDRINUSE), _) | (_, Err(Errno::ADDRINUSE)) => Err(format!(
            "UDP port {port} is taken by a program that does not share it; see: ss -lunp 'sport = :{port}'"
        )),
        (Err(error), Err(_)) => Err(format!("cannot use UDP port {port}: {}", io::Error::from(error))),
        _ => Ok(()), // a host may lack one of the two families
    }
}

fn service(tag: &str) -> String {
    format!("_m-{}._udp.local.", tag.to_ascii_lowercase())
}

/// A DNS label for this peer. DNS ignores case, so not the PeerId as it is printed.
fn label(peer: PeerId) -> String {
    data_encoding::BASE32_NOPAD.encode(peer.as_bytes()).to_ascii_lowercase()
}

/// Between attempts to get the port: somebody may be restarting the program that holds it.
const RETRY_MIN: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the goodbye: sending takes a few milliseconds.
const GOODBYE: Duration = Duration::from_millis(500);
/// Addresses taken from one announcement.
const MAX_ADDRESSES: usize = 8;

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Instant;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// A multicast world of this test alone: a free port, loopback only.
    struct World(u16);

    struct Peer {
        mdns: Mdns,
        found: mpsc::Receiver<Found>,
    }

    impl World {
        fn new() -> Self {
            Self(UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port())
        }

        fn join(&self, n: u8, tags: &[&str]) -> Peer {
            let (sender, found) = mpsc::channel(8);
            let config = MdnsConfig { loopback: true, interfaces: vec!["lo".into()], port: Some(self.0) };
            let mdns = Mdns::start(peer(n), u64::from(n), owned(tags), config, sender);
            mdns.set_port(4000 + u16::from(n));
            Peer { mdns, found }
        }
    }

    impl Peer {
        /// The next peer heard of, whoever that is.
        async fn next(&mut self) -> Found {
            timeout(DEADLINE, self.found.recv()).await.expect("a peer is heard of").expect("mDNS runs")
        }

        /// Waits until that peer is heard of with that port.
        async fn hears(&mut self, n: u8, port: u16) -> Found {
            let address = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
            loop {
                let found = self.next().await;
                if found.peer == Some(peer(n)) && found.addresses.contains(&address) {
                    return found;
                }
            }
        }
    }

    fn peer(n: u8) -> PeerId {
        PeerId::from_bytes([n; 32])
    }

    fn owned(tags: &[&str]) -> Vec<String> {
        tags.iter().map(|tag| (*tag).to_owned()).collect()
    }

    fn clock() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "measures what a person would wait")]
        Instant::now()
    }

    const OURS: &str = "aaaaaaaaaaaa2";
    const OTHER: &str = "bbbbbbbbbbbb3";

    #[tokio::test(flavor = "multi_thread")]
    async fn peers_of_one_mesh_hear_of_each_other_and_of_nobody_else() {
        let world = World::new();
        let mut stranger = world.join(9, &[OTHER]);
        let mut a = world.join(1, &[OURS]);
        let mut b = world.join(2, &[OURS]);
        let (of_a, of_b) = (b.next().await, a.next().await);
        assert_eq!((of_a.peer, of_a.started, of_a.source), (Some(peer(1)), 1, Source::Mdns));
        assert_eq!((of_b.peer, of_b.started), (Some(peer(2)), 2));
        assert_eq!(of_b.addresses[0], "/ip4/127.0.0.1/tcp/4002".parse().unwrap());
        assert_eq!(a.mdns.status(), "ok");
        assert!(stranger.found.try_recv().is_err());
        for peer in [a, b, stranger] {
            peer.mdns.shutdown().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_new_port_and_a_new_tag_are_told() {
        let world = World::new();
        let (mut a, mut b) = (world.join(1, &[OURS]), world.join(2, &[OTHER]));
        a.mdns.set_tags(owned(&[OURS, OTHER]));
        b.hears(1, 4001).await;
        a.hears(2, 4002).await;
        b.mdns.set_port(5002);
        a.hears(2, 5002).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_says_goodbye_is_not_heard_of_again() {
        let world = World::new();
        let (a, mut b) = (world.join(1, &[OURS]), world.join(2, &[OURS]));
        b.hears(1, 4001).await;
        a.mdns.shutdown().await;
        let mut c = world.join(3, &[OURS]);
        assert_eq!(c.next().await.peer, Some(peer(2)));
    }

    #[tokio::test]
    async fn a_port_that_is_not_shared_is_a_status_not_an_error() {
        let holder = UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let mut a = World(port).join(1, &[OURS]);
        let state =
            timeout(DEADLINE, a.mdns.state.wait_for(|state| state != "starting")).await.unwrap().unwrap().clone();
        assert!(state.contains("is taken") && state.contains(&port.to_string()), "{state}");
        a.mdns.shutdown().await;
        assert!(a.found.recv().await.is_none());
    }

    #[test]
    fn addresses_that_lead_nowhere_are_dropped() {
        let check = |ips: &[&str], loopback, expected: &[&str]| {
            let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            let expected: Vec<Multiaddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(addresses(ips, 7, loopback), expected);
        };
        check(
            &["fd00::1", "fe80::1", "169.254.1.1", "10.0.0.1", "0.0.0.0", "127.0.0.1"],
            false,
            &["/ip4/10.0.0.1/tcp/7", "/ip4/169.254.1.1/tcp/7", "/ip6/fd00::1/tcp/7"],
        );
        check(&["127.0.0.1", "10.0.0.1", "10.0.0.1"], true, &["/ip4/10.0.0.1/tcp/7", "/ip4/127.0.0.1/tcp/7"]);
        check(&["fe80::1"], false, &[]);
        let many: Vec<IpAddr> = (1..100).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        assert_eq!(addresses(many, 7, false).len(), MAX_ADDRESSES);
        assert_eq!(addresses(vec![IpAddr::from([10, 0, 0, 1])], 0, false), []);
    }

    #[test]
    fn a_label_fits_dns() {
        let label = label(peer(255));
        assert!(label.len() <= 63 && label.chars().all(|c| matches!(c, 'a'..='z' | '2'..='7')), "{label}");
    }

    /// How long discovery takes: `cargo test latency -- --ignored --nocapture`.
    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "a measurement: it prints figures and has nothing to assert"]
    async fn latency() {
        for (mesh, quiet) in [("a quiet mesh", Duration::from_millis(2500)), ("a busy mesh", Duration::ZERO)] {
            let (mut joiner, mut member) = (Vec::new(), Vec::new());
            for _ in 0..10 {
                let world = World::new();
                let mut a = world.join(1, &[OURS]);
                // A third peer tells when the first is established, and leaves.
                let mut third = world.join(3, &[OURS]);
                third.hears(1, 4001).await;
                third.mdns.shutdown().await;
                // What was multicast less than a second ago is not repeated: the joiner has to ask a second time.
                sleep(quiet).await;
                while a.found.try_recv().is_ok() {}
                let start = clock();
                let mut b = world.join(2, &[OURS]);
                let (hears_member, hears_joiner) =
                    tokio::join!(async { (b.hears(1, 4001).await, start.elapsed()).1 }, async {
                        (a.hears(2, 4002).await, start.elapsed()).1
                    },);
                joiner.push(hears_member);
                member.push(hears_joiner);
            }
            for (who, mut times) in [("joiner hears member", joiner), ("member hears joiner", member)] {
                times.sort();
                println!("{mesh}, {who}: p50 {:?}, max {:?}", times[times.len() / 2], times[times.len() - 1]);
            }
        }
    }
}
