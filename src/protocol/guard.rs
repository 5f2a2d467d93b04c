//! Permissions at work: what a rule does not let a peer do is counted, and told to it and to who watches.
//!
//! The peer that owns the resource decides, by the identity that the other one's signed record proves. Where no rule is about
//! an action, nothing is looked up; where one is, it is once for each topic of a data stream, service of a data stream, and
//! change of routes, never for each message.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::mesh::{
    Action, Identity, Member, NotAllowed, PeerId, Permissions, Record, Route, Routes, ServiceName, Topic, What,
};
use crate::net::{Link, Links, Order, Room};
use crate::wire::frame::{self, Refused};

/// The rules of this peer, and what came of them.
#[derive(Debug)]
pub(crate) struct Guard {
    permissions: Permissions,
    /// Which actions rules are about, a bit each.
    about: u8,
    links: Links,
    /// For who watches. When it is full, they miss some: the counts have all.
    notices: mpsc::Sender<What>,
    noted: Mutex<Noted>,
    refused: AtomicU64,
    /// Who is linked, or was a moment ago. Known before the first frame is read, and as long as anything is remembered of the
    /// peer: the routes know it later, and not while it leaves.
    identities: RwLock<HashMap<PeerId, Identity>>,
}

/// What was told in this minute.
#[derive(Debug)]
struct Noted {
    since: Instant,
    told: HashSet<(PeerId, bool, Action, String)>,
    by_peer: HashMap<PeerId, usize>,
}

/// A peer that sends something over one data stream, and what it may do here.
#[derive(Clone, Debug)]
pub(crate) struct Visitor {
    guard: Arc<Guard>,
    peer: PeerId,
    /// `None`: this peer itself, which may do what it likes.
    identity: Option<Identity>,
}

impl Default for Guard {
    /// Without rules.
    fn default() -> Self {
        Self::new(Permissions::default(), Links::default(), mpsc::channel(1).0)
    }
}

impl Guard {
    /// `links` lead to who is told, `notices` to who watches.
    pub(crate) fn new(permissions: Permissions, links: Links, notices: mpsc::Sender<What>) -> Self {
        let messages = [Action::Send, Action::Listen, Action::Call, Action::Serve];
        let others = [Action::Get, Action::Put, Action::Exec, Action::Stop];
        let about = messages.into_iter().chain(others).filter(|action| permissions.is_about(*action)).map(bit).sum();
        let noted = Noted { since: Instant::now(), told: HashSet::new(), by_peer: HashMap::new() };
        let (noted, refused, identities) = (Mutex::new(noted), AtomicU64::new(0), RwLock::default());
        Self { permissions, about, links, notices, noted, refused, identities }
    }

    /// Who sends over a data stream: a peer of that identity, or with `None` this peer itself.
    pub(crate) fn visitor(self: &Arc<Self>, peer: PeerId, identity: Option<Identity>) -> Visitor {
        if let Some(identity) = identity {
            self.identities.write().unwrap_or_else(PoisonError::into_inner).insert(peer, identity);
        }
        Visitor { guard: Arc::clone(self), peer, identity }
    }

    /// The identity that a peer has proved, if it is linked or was a moment ago.
    pub(crate) fn identity(&self, peer: PeerId) -> Option<Identity> {
        self.identities.read().unwrap_or_else(PoisonError::into_inner).get(&peer).copied()
    }

    pub(super) fn forget(&self, peer: PeerId) {
        self.identities.write().unwrap_or_else(PoisonError::into_inner).remove(&peer);
    }

    /// Whether another peer may do something here. A refusal is counted, and told to who watches.
    pub(crate) fn permits(&self, peer: PeerId, action: Action, resource: &str) -> Result<(), NotAllowed> {
        self.permits_by_any_name(peer, action, &[resource])
    }

    /// As [`permits`](Self::permits), for what has several names: it is told of by the first.
    pub(crate) fn permits_by_any_name(&self, peer: PeerId, action: Action, names: &[&str]) -> Result<(), NotAllowed> {
        if action != Action::Stop && !self.is_about(action) {
            return Ok(()); // as a rule, and asked for each file
        }
        self.permissions.check_names(self.identity(peer), action, names).inspect_err(|NotAllowed { rule }| {
            self.count(1);
            self.note(peer, true, action, names.first().unwrap_or(&""), rule);
        })
    }

    /// How often something was refused to others.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether any rule is about the action.
    pub(super) fn is_about(&self, action: Action) -> bool {
        self.about & bit(action) != 0
    }

    /// Takes those out of a route who may not listen to the topic, and tells them.
    pub(super) fn admit_listeners(&self, me: PeerId, routes: &Routes, topic: &Topic, route: &mut Route) {
        if !self.is_about(Action::Listen) {
            return;
        }
        // The filter is told, not the topic: that it exists may be nobody else's business.
        let filter = |member: &Member, record: &Record| {
            let node = record.nodes.iter().find(|node| node.index == member.id.index)?;
            node.filters.iter().find(|filter| filter.matches(topic)).map(ToString::to_string)
        };
        for group in &mut route.groups {
            group
                .members
                .retain(|member| self.admits(me, routes, member, Action::Listen, topic.as_str(), filter).is_ok());
        }
        route.groups.retain(|group| !group.members.is_empty());
    }

    /// Takes those out who may not serve the service to this peer, and tells them. Gives the last of them, and the rule.
    pub(super) fn admit_providers(
        &self,
        me: PeerId,
        routes: &Routes,
        service: &ServiceName,
        members: &mut Vec<Member>,
    ) -> Option<(Member, NotAllowed)> {
        let mut left_out = None;
        if self.is_about(Action::Serve) {
            let offers = |_: &Member, _: &Record| Some(service.to_string());
            members.retain(|member| {
                let admitted = self.admits(me, routes, member, Action::Serve, service.as_str(), offers);
                admitted.map_err(|refusal| left_out = Some((member.clone(), refusal))).is_ok()
            });
        }
        left_out
    }

    /// Whether a node may get what this peer sends. If not, its peer is told, once in a while.
    fn admits(
        &self,
        me: PeerId,
        routes: &Routes,
        member: &Member,
        action: Action,
        resource: &str,
        told: impl FnOnce(&Member, &Record) -> Option<String>,
    ) -> Result<(), NotAllowed> {
        let peer = member.id.peer;
        if peer == me {
            return Ok(());
        }
        let record = routes.record(peer);
        let refusal = self.permissions.check(record.map(|record| record.identity), action, resource);
        refusal.inspect_err(|NotAllowed { rule }| {
            let told = record.and_then(|record| told(member, record)).unwrap_or_default();
            if self.note(peer, true, action, &told, rule) {
                self.count(1);
                if let Some(link) = self.links.get(peer) {
                    tell(&link, Refused { action, resource: told, rule: rule.clone() });
                }
            }
        })
    }

    /// Another peer says that it does not let this one do something.
    pub(super) fn refused_there(&self, peer: PeerId, refused: &Refused) {
        let Refused { action, resource, rule } = refused;
        self.note(peer, false, *action, resource, rule);
    }

    fn count(&self, count: u64) {
        self.refused.fetch_add(count, Ordering::Relaxed);
    }

    /// Tells who watches, unless that was told just before. Whether it was not.
    fn note(&self, peer: PeerId, here: bool, action: Action, resource: &str, rule: &str) -> bool {
        self.note_at(Instant::now(), peer, here, (action, resource, rule))
    }

    fn note_at(&self, now: Instant, peer: PeerId, here: bool, (action, resource, rule): (Action, &str, &str)) -> bool {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(noted.since) >= AGAIN {
            *noted = Noted { since: now, told: HashSet::new(), by_peer: HashMap::new() };
        }
        let of_peer = noted.by_peer.get(&peer).copied().unwrap_or_default();
        if noted.told.len() >= MAX_NOTED || of_peer >= MAX_NOTED_OF_PEER {
            return false;
        }
        if !noted.told.insert((peer, here, action, resource.to_owned())) {
            return false;
        }
        noted.by_peer.insert(peer, of_peer + 1);
        drop(noted);
        let (resource, rule) = (resource.to_owned(), rule.to_owned());
        let _ = self.notices.try_send(What::Refused { peer, here, action, resource, rule }); // as said at `notices`
        true
    }
}

impl Visitor {
    pub(super) fn peer(&self) -> PeerId {
        self.peer
    }

    /// Whether it is to be looked up what it may do: else it may.
    pub(super) fn asks(&self, action: Action) -> bool {
        self.identity.is_some() && self.guard.is_about(action)
    }

    /// The rule by which the peer may not do something, if there is one. Counts nothing yet.
    pub(super) fn refusal(&self, action: Action, resource: &str) -> Option<String> {
        if !self.asks(action) {
            return None;
        }
        self.guard.permissions.check(self.identity, action, resource).err().map(|NotAllowed { rule }| rule)
    }

    /// It tried.
    pub(super) fn refused(&self, action: Action, resource: &str, rule: &str) {
        self.guard.count(1);
        self.guard.note(self.peer, true, action, resource, rule);
    }

    /// It tried once more.
    pub(super) fn refused_again(&self) {
        self.guard.count(1);
    }
}

/// Says to a peer what it may not do.
pub(super) fn tell(link: &Link, refused: Refused) {
    // Refused by a link that is down: it is said again if it matters on the next.
    let _ = link.push(Order::Free, |out| frame::put_refused(out, &refused), &Bytes::new(), Room::Always);
}

fn bit(action: Action) -> u8 {
    1 << action as u8
}

/// How long one refusal is not told again, nor counted again to a peer whose nodes are left out.
const AGAIN: Duration = Duration::from_secs(60);
/// Refusals that are told in that time, all in all and of one peer: who makes up names hides nobody else's.
const MAX_NOTED: usize = 4096;
const MAX_NOTED_OF_PEER: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{AllowRule, Who, kit};

    fn guard(action: Action) -> (Arc<Guard>, mpsc::Receiver<What>) {
        let rule = AllowRule { name: Some("none".into()), who: vec![], action: vec![action], pattern: "**".into() };
        let (notices, told) = mpsc::channel(MAX_NOTED * 2);
        (Arc::new(Guard::new(Permissions::new(vec![rule]), Links::default(), notices)), told)
    }

    #[test]
    fn what_no_rule_is_about_is_not_looked_up_and_oneself_may_do_all() {
        let (guard, _told) = guard(Action::Call);
        let stranger = guard.visitor(kit::peer(2), Some(Identity::from_bytes([2; 32])));
        assert_eq!(stranger.refusal(Action::Send, "t"), None);
        assert_eq!(stranger.refusal(Action::Call, "s"), Some("none".into()));
        assert_eq!(guard.visitor(kit::peer(1), None).refusal(Action::Call, "s"), None);
    }

    #[test]
    fn a_refusal_is_told_once_a_minute_and_one_peer_hides_not_the_others() {
        let (guard, mut told) = guard(Action::Call);
        let began = Instant::now();
        let note = |seconds, n, resource: &str| {
            let at = began + Duration::from_secs(seconds);
            guard.note_at(at, kit::peer(n), true, (Action::Call, resource, "none"))
        };
        assert!(note(0, 2, "s") && !note(1, 2, "s"));
        let new = (0..MAX_NOTED).filter(|n| note(2, 2, &n.to_string())).count();
        assert_eq!(new, MAX_NOTED_OF_PEER - 1);
        assert!(note(3, 3, "s"));
        assert!(note(AGAIN.as_secs() + 1, 2, "s"), "a minute later");
        let (resource, rule) = ("s".to_owned(), "none".to_owned());
        let first = What::Refused { peer: kit::peer(2), here: true, action: Action::Call, resource, rule };
        assert_eq!((told.len(), told.try_recv()), (MAX_NOTED_OF_PEER + 2, Ok(first)));
    }

    #[test]
    fn what_a_peer_tries_is_counted_each_time() {
        let (guard, told) = guard(Action::Call);
        let visitor = guard.visitor(kit::peer(2), Some(Identity::from_bytes([2; 32])));
        (0..10).for_each(|_| visitor.refused(Action::Call, "s", "none"));
        assert_eq!((told.len(), guard.refused()), (1, 10));
    }

    /// Who may not is left out, whatever its nodes are called; and this peer's own nodes never are.
    #[test]
    fn who_may_not_listen_or_serve_is_left_out_by_its_peer_alone() {
        let rule = |action| AllowRule {
            name: None,
            who: vec![Who::One(Identity::from_bytes([2; 32]))],
            action: vec![action],
            pattern: "secret/**".into(),
        };
        let (notices, mut told) = mpsc::channel(8);
        let rules = vec![rule(Action::Listen), rule(Action::Serve)];
        let guard = Guard::new(Permissions::new(rules), Links::default(), notices);
        let mut routes = Routes::default();
        for n in [1, 2, 3] {
            let record = kit::record_with(n, [kit::listener(0, "same", &["secret/*", "open"])]);
            let record = Record { identity: Identity::from_bytes([n as u8; 32]), ..record };
            routes.replace(kit::peer(n), None, Some(&Arc::new(record)));
        }
        let listeners = |topic: &str| {
            let topic = kit::topic(topic);
            let mut route = routes.resolve(&topic, "host-1", crate::mesh::GroupBy::Name);
            guard.admit_listeners(kit::peer(1), &routes, &topic, &mut route);
            let members = route.groups.into_iter().flat_map(|group| group.members);
            members.map(|member| member.id.peer).collect::<Vec<_>>()
        };
        assert_eq!(listeners("open").len(), 3);
        let mut allowed = vec![kit::peer(1), kit::peer(2)];
        allowed.sort_unstable();
        assert_eq!(listeners("secret/x"), allowed);
        let Ok(What::Refused { peer, resource, rule, .. }) = told.try_recv() else { panic!("somebody is told") };
        assert_eq!((peer, &resource[..], &rule[..]), (kit::peer(3), "secret/*", "listen secret/**"));
        let service = ServiceName::new("secret/add").unwrap();
        let topic = kit::topic("open");
        let mut members = routes.resolve(&topic, "host-1", crate::mesh::GroupBy::Name).groups.remove(0).members;
        let left_out = guard.admit_providers(kit::peer(1), &routes, &service, &mut members).unwrap();
        assert_eq!((left_out.0.id.peer, members.len()), (kit::peer(3), 2));
    }
}
