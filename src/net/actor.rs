//! The event loop: swarm events, commands and timers in; engine, dialer and swarm calls out. Nothing here waits for the
//! network.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use libp2p::swarm::{ConnectionId, ListenError, SwarmEvent};
use libp2p::{Multiaddr, Swarm, gossipsub, kad};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::sleep_until;
use tracing::{debug, info, warn};

use super::addresses::{self, plan};
use super::behaviour::{Behaviour, BehaviourEvent, members_topic};
use super::command::{Alive, Command};
use super::connections::{Connection, Remote};

use super::dialer::{Dial, DialFailure, Dialer, DialerConfig};
use super::dialing::failure_of;
use super::discovery::local::SameHost;
use super::discovery::mdns::{Mdns, MdnsConfig};
use super::discovery::{Discovery, Found, Source};
use super::leaving::Leaving;
use super::local::LocalLinks;
use super::peer_id::{from_libp2p, to_libp2p};
use super::proof::{AcceptedKeys, AdmittedBy};
use super::session::SessionEvent;
use super::{Links, NetConfig, NetError, loopback, transport};
use crate::keys::{KeyRing, RunKey};
use crate::mesh::engine::{Effect, Engine, EngineConfig};
use crate::mesh::{Counts, Edition, Event, PeerId, Record, Routes, ServiceName, TopicFilter, What};
use crate::wire::message::{Gossip, Signer, decode, encode, read_record};

/// All that the loop owns.
pub(super) struct Actor {
    pub(super) me: PeerId,
    pub(super) config: NetConfig,
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) engine: Engine,
    pub(super) dialer: Dialer,
    pub(super) rng: SmallRng,
    pub(super) now: Instant,
    pub(super) started: SystemTime,
    pub(super) began: Instant,
    pub(super) accepted: AcceptedKeys,
    pub(super) admitted: AdmittedBy,
    /// When a rotation without grace shuts out who has not confirmed the new key.
    pub(super) shut_out_at: Option<Instant>,
    /// Connections that are closed once their last word is out.
    pub(super) closing: Vec<(Instant, ConnectionId)>,

    pub(super) links: Links,
    pub(super) connections: HashMap<ConnectionId, Connection>,
    pub(super) remotes: HashMap<PeerId, Remote>,
    /// Peers whose link was lost, and until when what was under way waits for them.
    pub(super) away: HashMap<PeerId, Instant>,
    pub(super) dials: HashMap<ConnectionId, Dial>,
    pub(super) sessions: mpsc::Sender<(ConnectionId, SessionEvent)>,
    pub(super) session_events: mpsc::Receiver<(ConnectionId, SessionEvent)>,
    pub(super) edition: watch::Sender<Edition>,
    /// The current record was not gossiped: nobody was there.
    unheard: bool,
    pub(super) counts: Counts,

    pub(super) discovery: Discovery,
    pub(super) same_host: Option<SameHost>,
    pub(super) local_links: Option<Arc<LocalLinks>>,
    pub(super) mdns: Option<Mdns>,
    found: mpsc::Receiver<Found>,
    /// Keeps `found` open when mDNS is off.
    _finder: mpsc::Sender<Found>,
    pub(super) next_scan: Instant,
    pub(super) kad_due: Option<Instant>,
    pub(super) cache_due: Option<Instant>,
    pub(super) listening: Vec<Multiaddr>,
    /// What to listen on as well once the system has chosen a port.
    pub(super) same_port: Vec<IpAddr>,
    pub(super) bootstrap: Vec<Multiaddr>,
    pub(super) ready: Option<oneshot::Sender<()>>,
    pub(super) ready_at: Option<Instant>,
    pub(super) foreign_seen: HashSet<String>,
    /// Connections that failed the membership proof, in either direction.
    pub(super) refused: u64,

    commands: mpsc::Receiver<Command>,
    notices: mpsc::Receiver<What>,
    pub(super) routes: watch::Sender<Arc<Routes>>,
    events: broadcast::Sender<Event>,
    held: FuturesUnordered<Held>,
    /// Set when the peer said goodbye; the loop ends when that is out.
    pub(super) leaving: Option<Leaving>,
}

/// Resolves to what has ended when its handle is dropped.
type Held = futures::future::Map<Alive, Box<dyn FnOnce(AliveEnded) -> Ended + Send>>;
type AliveEnded = Result<std::convert::Infallible, oneshot::error::RecvError>;

/// What a handle stood for.
enum Ended {
    Node(u32),
    Listening(u32, TopicFilter),
    Serving(u32, ServiceName),
}

impl Actor {
    #[expect(clippy::disallowed_methods, reason = "the loop's first reading of the clock")]
    pub(super) fn start(
        mut config: NetConfig,
        links: Links,
        commands: mpsc::Receiver<Command>,
        events: broadcast::Sender<Event>,
        ready: oneshot::Sender<()>,
    ) -> Result<(Self, watch::Receiver<Arc<Routes>>), NetError> {
        let (now, started) = (Instant::now(), SystemTime::now());
        let (listen, bootstrap) = addresses::read(&config.listen, &config.bootstrap)?;
        let listen = plan(&listen)?;

        let run = RunKey::generate();
        let me = run.peer_id();
        let accepted = AcceptedKeys::new(config.ring.accepted(started));
        let admitted = AdmittedBy::default();
        let mut swarm = transport::swarm(&run.secret_bytes(), accepted.clone(), admitted.clone(), Behaviour::new)
            .map_err(|error| NetError::Transport(Box::new(error)))?;
        for address in &listen.now {
            swarm.listen_on(address.clone()).map_err(|error| NetError::Listen {
                address: address.to_string(),
                source: std::io::Error::other(error),
            })?;
        }

        let incarnation = started.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        let own = Record {
            peer: me,
            identity: config.identity.identity(),
            edition: Edition { incarnation, version: 0 },
            host: config.host.clone(),
            software: env!("CARGO_PKG_VERSION").to_owned(),
            addresses: Vec::new(),
            nodes: Vec::new(),
            leaving: false,
        };
        let signer = Signer { run, identity: config.identity.clone() };
        let engine = Engine::new(own, Box::new(signer), &EngineConfig::default(), now);

        let (found_sender, found) = mpsc::channel(FOUND);
        let tags = tags(&config.ring, started);
        let mut discovery = Discovery::default();
        let same_host = config.runtime_dir.as_deref().and_then(|folder| {
            SameHost::open(folder, me, incarnation, &tags)
                .inspect_err(|error| {
                    warn!(%error, "peers of this host cannot be found by the runtime directory");
                    discovery.set_state(Source::Local, error.to_string());
                })
                .ok()
        });
        let local_links = config.runtime_dir.as_deref().and_then(|folder| {
            LocalLinks::open(folder, me)
                .inspect_err(|error| warn!(%error, "peers of this host are linked over TCP, not over Unix sockets"))
                .ok()
                .map(Arc::new)
        });
        if config.runtime_dir.is_none() {
            discovery.set_state(Source::Local, "off");
        }
        let mdns = config.mdns.then(|| {
            // Multicast over loopback would find what the runtime directory finds; with that off, hosts are kept apart.
            let settings = MdnsConfig::default();
            Mdns::start(me, incarnation, tags, settings, found_sender.clone())
        });
        if !config.kad {
            discovery.set_state(Source::Kad, "off");
        }

        let (sessions, session_events) = mpsc::channel(SESSION_EVENTS);
        let (routes, routes_out) = watch::channel(Arc::default());
        loopback::start(me, &links, config.limits, config.max_message, &config.carried);
        let mut actor = Self {
            me,
            swarm,
            engine,
            dialer: Dialer::new(me, incarnation, DialerConfig::default()),
            rng: SmallRng::from_rng(&mut rand::rng()),
            now,
            started,
            began: now,
            accepted,
            admitted,
            shut_out_at: None,
            closing: Vec::new(),
            links,
            connections: HashMap::new(),
            remotes: HashMap::new(),
            away: HashMap::new(),
            dials: HashMap::new(),
            sessions,
            session_events,
            edition: watch::Sender::new(Edition::default()),
            unheard: false,
            counts: Counts::default(),
            discovery,
            same_host,
            local_links,
            mdns,
            found,
            _finder: found_sender,
            next_scan: now,
            kad_due: None,
            cache_due: None,
            listening: Vec::new(),
            same_port: listen.same_port,
            bootstrap: bootstrap.clone(),
            ready: Some(ready),
            ready_at: None,
            foreign_seen: HashSet::new(),
            refused: 0,
            commands,
            notices: std::mem::replace(&mut config.notices, mpsc::channel(1).1),
            routes,
            events,
            held: FuturesUnordered::new(),
            leaving: None,
            config,
        };
        if !bootstrap.is_empty() {
            actor.found(Found { peer: None, addresses: bootstrap, source: Source::Bootstrap, started: 0 });
        }
        actor.load_cache();
        actor.scan();
        actor.settle();
        Ok((actor, routes_out))
    }

    /// Runs until the last handle is dropped or the peer was told to leave.
    pub(super) async fn run(mut self) {
        loop {
            let deadline = self.deadline();
            tokio::select! {
                event = self.swarm.select_next_some() => self.on(|actor| actor.on_swarm_event(event)),
                command = self.commands.recv(), if self.leaving.is_none() => self.on(|actor| match command {
                    Some(command) => actor.on_command(command),
                    None => actor.leave(None), // every handle is gone
                }),
                Some((connection, event)) = self.session_events.recv() => {
                    self.on(|actor| actor.on_session_event(connection, event));
                }
                Some(what) = self.notices.recv() => self.on(|actor| actor.happened(what)),
                Some(found) = self.found.recv() => self.on(|actor| actor.found(found)),
                Some(ended) = self.held.next() => self.on(|actor| actor.on_handle_dropped(ended)),
                () = sleep_until(deadline.into()) => self.on(Self::on_timer),
            }
            if self.has_left() {
                break;
            }
        }
        self.stop().await;
    }

    /// Handles one thing and all that follows from it, at one reading of the clock.
    fn on(&mut self, handle: impl FnOnce(&mut Self)) {
        #[expect(clippy::disallowed_methods, reason = "the one place where the loop's time comes from")]
        let now = Instant::now();
        self.now = now;
        handle(self);
        self.settle();
    }

    /// Carries out what the engine and the dialer want.
    fn settle(&mut self) {
        self.engine.settle(self.now);
        loop {
            let effects: Vec<Effect> = self.engine.effects().collect();
            if effects.is_empty() {
                break;
            }
            // Routes first: what is told of can be seen already.
            let (routes, others): (Vec<Effect>, Vec<Effect>) =
                effects.into_iter().partition(|effect| matches!(effect, Effect::Routes(_)));
            routes.into_iter().chain(others).for_each(|effect| self.apply(effect));
        }
        if self.leaving.is_none() {
            self.dial();
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Publish(signed) => {
                self.edition.send_replace(signed.edition());
                self.gossip();
            }
            Effect::Tell(peer, say) => self.tell(peer, &say.into()),
            Effect::Learned(record) => {
                let addresses = record.addresses.iter().filter_map(|text| text.parse().ok()).collect();
                let started = record.edition.incarnation;
                self.found(Found { peer: Some(record.peer), addresses, source: Source::Member, started });
            }
            Effect::Forget(peer) => self.forget(peer),
            Effect::Routes(routes) => {
                self.routes.send_replace(routes);
            }
            Effect::Happened(what) => self.happened(what),
        }
    }

    /// Tells all of this peer's record, as far as anybody is there.
    fn gossip(&mut self) {
        let gossip = encode(&Gossip::of(self.engine.own()));
        let published = self.swarm.behaviour_mut().gossip.publish(members_topic(), gossip.to_vec());
        self.unheard = published.is_err();
        if let Err(error) = published {
            // Nobody there yet, or queues full: beats and comparisons bring it to whoever missed it.
            debug!(%error, "record not gossiped");
        }
    }

    pub(super) fn happened(&mut self, what: What) {
        match &what {
            What::PeerUp { peer, host } => info!(%peer, host, "peer up"),
            What::PeerDown { peer, host, reason } => info!(%peer, host, reason = reason.name(), "peer down"),
            What::MessagesLost { peer, unsent, in_flight, .. } => {
                self.counts.dropped += unsent + in_flight;
                info!(%peer, unsent, in_flight, "messages lost with a link");
            }
            What::Refused { peer, here, action, resource, rule } => {
                let identity = self.engine.view().signed(*peer).map(|signed| signed.record().identity.to_string());
                let by = if *here { "this peer" } else { "the other peer" };
                info!(%peer, identity, %action, resource, rule, by, "refused");
            }
            What::KeyRotated { epoch } => info!(epoch, "the network key was rotated"),
            _ => {}
        }
        let _ = self.events.send(Event { time: SystemTime::now(), what }); // nobody watches: fine
    }

    // What comes in.

    fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::NewListenAddr { address, .. } => {
                self.on_port(&address);
                self.listening.push(address);
                self.on_addresses();
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.listening.retain(|known| *known != address);
                self.on_addresses();
            }
            SwarmEvent::ListenerClosed { addresses, reason: Err(error), .. } => {
                warn!(?addresses, %error, "a listener closed: peers cannot dial us there any more");
            }
            SwarmEvent::ListenerError { error, .. } => {
                warn!(%error, "a connection could not be accepted (too many open files? raise `ulimit -n`)");
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, .. } => {
                self.on_disconnected(peer_id, connection_id, num_established);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.on_dial_error(connection_id, &error);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                debug!(from = %send_back_addr, error = &error as &dyn std::error::Error, "a connection was refused");
                let failure = failure_of(&error);
                // Crowds are counted at the gate. Whoever else fails is no member: members try one address at a time.
                if !matches!(error, ListenError::Denied { .. }) {
                    self.refused += 1;
                }
                if failure == DialFailure::WrongKey {
                    self.foreign(&send_back_addr);
                }
            }
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            _ => {}
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Streams(connection) => self.on_streams(connection),
            BehaviourEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                let good = message
                    .source
                    .as_ref()
                    .and_then(from_libp2p)
                    .is_some_and(|from| self.on_gossip(from, message.data));
                let verdict =
                    if good { gossipsub::MessageAcceptance::Accept } else { gossipsub::MessageAcceptance::Reject };
                let gossip = &mut self.swarm.behaviour_mut().gossip;
                gossip.report_message_validation_result(&message_id, &propagation_source, verdict);
            }
            // Who came to that peer at the same moment as this one does not know of it yet.
            BehaviourEvent::Gossip(gossipsub::Event::Subscribed { .. }) if self.unheard => self.gossip(),
            BehaviourEvent::Gossip(gossipsub::Event::SlowPeer { peer_id, failed_messages }) => {
                debug!(%peer_id, ?failed_messages, "gossip to a slow peer was dropped; its next beat repairs that");
            }
            BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                result: kad::QueryResult::GetClosestPeers(Ok(kad::GetClosestPeersOk { peers, .. })),
                ..
            }) => {
                for info in peers {
                    let found = Found {
                        peer: from_libp2p(&info.peer_id),
                        addresses: info.addrs,
                        source: Source::Kad,
                        started: 0,
                    };
                    if found.peer.is_some() {
                        self.found(found);
                    }
                }
            }
            _ => {}
        }
    }

    /// A message of the member `from` on the topic of membership. Says whether it is worth passing on.
    fn on_gossip(&mut self, from: PeerId, data: Vec<u8>) -> bool {
        match decode(&data) {
            Ok(Gossip::Record(bytes)) => match read_record(&bytes) {
                // Anybody may pass records on, but by gossip only their owners speak.
                Ok(signed) if signed.peer() == from => {
                    self.engine.gossiped(signed, self.now);
                    true
                }
                Ok(signed) => self.bad_record(from, &format!("speaks for {}", signed.peer())),
                Err(error) => self.bad_record(from, &error.to_string()),
            },
            Ok(Gossip::Changed { peer, edition }) if peer == from => {
                self.engine.current_edition(peer, edition);
                true
            }
            Ok(Gossip::Changed { peer, .. }) => self.bad_record(from, &format!("speaks for {peer}")),
            Err(error) => self.bad_record(from, &error.to_string()),
        }
    }

    pub(super) fn bad_record(&mut self, from: PeerId, why: &str) -> bool {
        self.counts.bad_records += 1;
        debug!(peer = %from, why, "a bad record was ignored");
        false
    }

    fn on_command(&mut self, command: Command) {
        // What a handle stood for that was dropped before ends before: a service can be offered again at once.
        while let Some(Some(ended)) = self.held.next().now_or_never() {
            self.on_handle_dropped(ended);
        }
        // A reply that fails: who asked does not wait any more.
        match command {
            Command::AddNode { name, alive, reply } => {
                let added = self.engine.add_node(name);
                if let Ok(id) = added {
                    self.hold(alive, Ended::Node(id.index));
                }
                self.engine.settle(self.now); // routed before the caller goes on
                self.settle();
                let _ = reply.send(added);
            }
            Command::Listen { node, filter, alive, reply } => {
                let listening = self.engine.listen(node, filter.clone());
                if listening.is_ok() {
                    self.hold(alive, Ended::Listening(node, filter));
                }
                self.settle();
                let _ = reply.send(listening);
            }
            Command::Serve { node, service, alive, reply } => {
                let serving = self.engine.serve(node, service.clone());
                if serving.is_ok() {
                    self.hold(alive, Ended::Serving(node, service));
                }
                self.settle();
                let _ = reply.send(serving);
            }
            Command::Peers { reply } => drop(reply.send(self.peers())),
            Command::Status { reply } => drop(reply.send(self.status())),
            Command::Keys { reply } => drop(reply.send(self.key_info())),
            Command::Rotate { grace, without, reply } => drop(reply.send(self.rotate(grace, &without))),
            Command::ReloadKeys { reply } => drop(reply.send(self.reload_keys())),
            Command::Invite { reply } => drop(reply.send(self.ticket())),
            Command::Retire { reply } => {
                self.engine.retire();
                let _ = reply.send(());
            }
            Command::Leave { reply } => self.leave(Some(reply)),
        }
    }

    fn hold(&mut self, alive: Alive, what: Ended) {
        self.held.push(alive.map(Box::new(move |_| what)));
    }

    fn on_handle_dropped(&mut self, ended: Ended) {
        match ended {
            Ended::Node(index) => self.engine.remove_node(index),
            Ended::Listening(node, filter) => self.engine.unlisten(node, &filter),
            Ended::Serving(node, service) => self.engine.unserve(node, &service),
        }
    }

    // Time.

    fn deadline(&self) -> Instant {
        let scan = self.same_host.is_some().then_some(self.next_scan);
        let leaving = self.leaving.as_ref().map(|leaving| leaving.until);
        let closing = self.closing.iter().map(|(at, _)| *at).min();
        let away = self.away.values().min().copied();
        [
            self.dialer.deadline(),
            scan,
            self.kad_due,
            self.shut_out_at,
            self.next_key_expiry(),
            closing,
            away,
            leaving,
            self.ready_at,
        ]
        .into_iter()
        .flatten()
        .fold(self.engine.deadline(), Instant::min)
    }

    fn on_timer(&mut self) {
        self.engine.tick(self.now, &mut self.rng);
        if self.now >= self.next_scan {
            self.scan();
        }
        if self.kad_due.is_some_and(|due| self.now >= due) {
            self.kad_due = Some(self.now + KAD_EVERY);
            self.swarm.behaviour_mut().kad.get_closest_peers(to_libp2p(self.me));
        }
        if self.cache_due.is_some_and(|due| self.now >= due) {
            self.cache_due = None;
            self.save_cache();
        }
        if self.ready_at.is_some_and(|at| self.now >= at) {
            self.tell_ready();
        }
        let gone = self.away.extract_if(|_, until| *until <= self.now).map(|(peer, _)| peer).collect::<Vec<_>>();
        gone.into_iter().for_each(|peer| self.config.carried.gone(peer));
        self.on_key_timers();
    }
}

/// The tags under which the mesh is announced: one for each key that opens the door.
pub(super) fn tags(ring: &KeyRing, now: SystemTime) -> Vec<String> {
    ring.accepted(now).into_iter().map(|secrets| secrets.tag).collect()
}

/// Events of sessions that wait for the loop. When full, control streams wait to be read.
const SESSION_EVENTS: usize = 1024;
/// Sightings by multicast that wait for the loop. When full, mDNS asks again later.
const FOUND: usize = 256;
/// Time between questions to the distributed hash table while nothing changes.
const KAD_EVERY: Duration = Duration::from_secs(300);
