//! What is measured, in which order.

use std::time::Duration;

use super::clock::{per_second, tenths};
use super::crew::Crew;
use super::figures::{Bench, Figures, Load, Row};
use super::order::{Answer, Order, Usage, Work};
use super::stream::{Flood, Sent, Take, Taken};
use super::{BenchError, Notice, PROCESSES, Plan, clock};
use crate::LinkKind;

/// Measures what the plan says, and tells each figure as soon as it is there. Ends early if `tell` says `false`.
///
/// # Errors
/// [`BenchError`]. What was told before holds.
///
/// # Cancel safety
/// Dropped, it ends all processes that it started.
pub(crate) async fn run(plan: &Plan, tell: &mut dyn FnMut(Notice) -> bool) -> Result<(), BenchError> {
    for link in &plan.links {
        let mut measure = Measure { plan, tell, link: *link, topics: 0, fastest: Vec::new(), told: 0 };
        match measure.all().await {
            // Links that change their kind meanwhile are a failure.
            Err(error @ BenchError::OtherLinks { .. }) if plan.leave_out && measure.told == 0 => {
                measure.say(Notice::LeftOut(format!("{}: {error}", link.name())))?;
            }
            ended => ended?,
        }
    }
    Ok(())
}

/// All benches over one kind of link.
struct Measure<'a> {
    plan: &'a Plan,
    tell: &'a mut dyn FnMut(Notice) -> bool,
    link: LinkKind,
    /// How many topics were used: each stream has one of its own.
    topics: usize,
    /// What was reached with messages of a size, per second.
    fastest: Vec<(usize, f64)>,
    /// How many figures there are so far.
    told: usize,
}

/// Two peers of a pair: one that asks and sends, one that listens and answers.
const SOURCE: usize = 0;
const SINK: usize = 1;

impl Measure<'_> {
    async fn all(&mut self) -> Result<(), BenchError> {
        let wanted = |bench: &Bench| self.plan.benches.contains(bench);
        if Bench::ALL.iter().any(|bench| *bench != Bench::Idle && wanted(bench)) {
            self.doing("starting peers")?;
            let mut crew = Crew::start(self.link, 2).await?;
            let ended = self.with_peers(&mut crew).await;
            crew.end().await;
            ended?;
        }
        if self.plan.benches.contains(&Bench::Idle) {
            self.idle().await?;
        }
        Ok(())
    }

    async fn with_peers(&mut self, crew: &mut Crew) -> Result<(), BenchError> {
        let plan = self.plan;
        crew.ask(SINK, &Order::Serve { in_flight: plan.in_flight }, Duration::ZERO).await?;
        for bench in Bench::ALL.into_iter().filter(|bench| plan.benches.contains(bench)) {
            match bench {
                Bench::Topic => {
                    for size in self.sizes(&TOPIC_SIZES) {
                        self.doing(&format!("topic, {size} B"))?;
                        self.rounds(crew, bench, async |measure, crew| measure.topic(crew, size).await).await?;
                    }
                }
                Bench::Echo => {
                    for size in self.sizes(&[SMALL]) {
                        self.doing(&format!("echo, {size} B"))?;
                        self.rounds(crew, bench, async |measure, crew| measure.echo(crew, size).await).await?;
                        self.rounds(crew, bench, async |measure, crew| measure.paced(crew, size).await).await?;
                    }
                }
                Bench::Call => {
                    let mut at_a_time = vec![1, plan.in_flight];
                    at_a_time.dedup();
                    for size in self.sizes(&[SMALL]) {
                        for in_flight in at_a_time.clone() {
                            self.doing(&format!("call, {size} B, {in_flight} in flight"))?;
                            let call =
                                async |measure: &mut Self, crew: &mut Crew| measure.call(crew, size, in_flight).await;
                            self.rounds(crew, bench, call).await?;
                        }
                    }
                }
                Bench::FanOut => {
                    for size in self.sizes(&[SMALL]) {
                        for listeners in plan.listeners.clone() {
                            self.doing(&format!("fan-out, {size} B, {listeners} listeners"))?;
                            crew.grow(1 + PROCESSES.min(listeners)).await?;
                            let fan = async |measure: &mut Self, crew: &mut Crew| {
                                measure.fan_out(crew, size, listeners).await
                            };
                            self.rounds(crew, bench, fan).await?;
                        }
                    }
                }
                Bench::Start => {
                    self.doing(&format!("start, {} times", plan.starts))?;
                    let figures = self.start(crew).await?;
                    self.told(bench, figures)?;
                }
                Bench::Idle => {} // has peers of its own
            }
        }
        Ok(())
    }

    /// Measures a figure as often as is wanted, makes sure that it is what it is said to be, and tells the median.
    async fn rounds(
        &mut self,
        crew: &mut Crew,
        bench: Bench,
        mut measure: impl AsyncFnMut(&mut Self, &mut Crew) -> Result<Figures, BenchError>,
    ) -> Result<(), BenchError> {
        let mut rounds = Vec::new();
        for _ in 0..self.plan.rounds.max(1) {
            rounds.push(measure(self, crew).await?);
        }
        crew.check().await?;
        let median = Figures::median(rounds).expect("at least one round");
        self.note_rate(&median);
        self.told(bench, median)
    }

    async fn topic(&mut self, crew: &mut Crew, size: usize) -> Result<Figures, BenchError> {
        let (sent, taken) = self.stream(crew, size, None, &[(SINK, 1)]).await?;
        let took = taken.last - taken.first;
        // The first message is there when the time begins.
        let (after, bytes) = (taken.messages - 1, taken.bytes - size as u64);
        let (msg_per_s, mb_per_s) = (per_second(after, took), megabytes(bytes, took));
        Ok(Figures::Topic { size, msg_per_s, mb_per_s, messages: taken.messages, lost: sent.messages - taken.messages })
    }

    fn note_rate(&mut self, figures: &Figures) {
        if let Figures::Topic { size, msg_per_s, .. } = figures {
            self.fastest.push((*size, *msg_per_s));
        }
    }

    async fn echo(&mut self, crew: &mut Crew, size: usize) -> Result<Figures, BenchError> {
        let work = self.work(size);
        match crew.ask(SOURCE, &Order::Trips(work), work.warm + work.time).await? {
            Answer::Echoed { latency, lost } => {
                Ok(Figures::Echo { size, load: Load::Idle, msg_per_s: None, latency, lost })
            }
            answer => Err(crew.unexpected(SOURCE, &answer)),
        }
    }

    /// Latency of messages that are sent at half of the rate that can be reached.
    async fn paced(&mut self, crew: &mut Crew, size: usize) -> Result<Figures, BenchError> {
        if !self.fastest.iter().any(|(of, _)| *of == size) {
            let topic = self.topic(crew, size).await?;
            self.note_rate(&topic);
        }
        let reached = self.fastest.iter().find(|(of, _)| *of == size).map_or(1.0, |(_, rate)| *rate);
        let (sent, taken) = self.stream(crew, size, Some((reached / 2.0).max(1.0)), &[(SINK, 1)]).await?;
        let latency =
            taken.latency.ok_or_else(|| BenchError::Failed { peer: SINK, why: "it measured nothing".into() })?;
        Ok(Figures::Echo {
            size,
            load: Load::Half,
            msg_per_s: Some(per_second(taken.messages.saturating_sub(1), taken.last - taken.first)),
            latency,
            lost: sent.messages - taken.messages,
        })
    }

    async fn call(&mut self, crew: &mut Crew, size: usize, in_flight: usize) -> Result<Figures, BenchError> {
        let work = self.work(size);
        match crew.ask(SOURCE, &Order::Calls { work, in_flight }, work.warm + work.time).await? {
            Answer::Called { calls, nanos, latency } => {
                Ok(Figures::Call { size, in_flight, calls_per_s: per_second(calls, nanos), calls, latency })
            }
            answer => Err(crew.unexpected(SOURCE, &answer)),
        }
    }

    async fn fan_out(&mut self, crew: &mut Crew, size: usize, listeners: usize) -> Result<Figures, BenchError> {
        let processes = PROCESSES.min(listeners);
        let share = |number: usize| listeners / processes + usize::from(number < listeners % processes);
        let takers: Vec<(usize, usize)> = (0..processes).map(|number| (SINK + number, share(number))).collect();
        let (sent, taken) = self.stream(crew, size, None, &takers).await?;
        let took = taken.last - taken.first;
        let messages = taken.messages;
        Ok(Figures::FanOut {
            size,
            listeners,
            processes,
            published_per_s: per_second(sent.messages, took),
            delivered_per_s: per_second(messages, took),
            mb_per_s: megabytes(taken.bytes, took),
            frames_per_link: (taken.frames as f64 / (sent.all * processes as u64) as f64 * 1000.0).round() / 1000.0,
            messages,
            lost: sent.messages * listeners as u64 - messages,
        })
    }

    /// From the start of a process until its first message is there, in a mesh that runs.
    async fn start(&mut self, crew: &mut Crew) -> Result<Figures, BenchError> {
        let mut took = Vec::new();
        for _ in 0..self.plan.starts {
            let topic = self.topic_name();
            crew.ask(SINK, &Order::Await { topic: topic.clone() }, Duration::ZERO).await?;
            let began = clock::now();
            let new = crew.add()?;
            crew.tell(new, &crew.join(new)).await?;
            crew.tell(new, &Order::Announce { topic }).await?;
            for _ in ["joined", "announced"] {
                crew.answer(new, Duration::ZERO).await?;
            }
            match crew.answer(SINK, Duration::ZERO).await? {
                Answer::Arrived { at } => took.push(at.saturating_sub(began)),
                answer => return Err(crew.unexpected(SINK, &answer)),
            }
            crew.check().await?;
            crew.dismiss_last().await?;
        }
        took.sort_unstable();
        let millis = |nanos: Option<&u64>| tenths(nanos.copied().unwrap_or_default() as f64 / 1e6);
        Ok(Figures::Start {
            starts: took.len(),
            median_ms: millis(took.get(took.len() / 2)),
            max_ms: millis(took.last()),
        })
    }

    /// What peers use that have nothing to do.
    async fn idle(&mut self) -> Result<(), BenchError> {
        let (peers, link) = (self.plan.idle, self.link);
        self.doing(&format!("idle, {peers} peers"))?;
        let mut crew = Crew::start(link, peers).await?;
        let ended = self.watch_idle(&mut crew).await;
        crew.end().await;
        match ended? {
            Some(figures) => self.told(Bench::Idle, figures),
            None => self.say(Notice::LeftOut("idle: this system has no /proc that tells of memory".into())),
        }
    }

    async fn watch_idle(&mut self, crew: &mut Crew) -> Result<Option<Figures>, BenchError> {
        let time = self.plan.time;
        tokio::time::sleep(time).await; // they have just met, and have things to tell each other
        let began = clock::now();
        let Some(before) = usage(crew).await? else { return Ok(None) };
        tokio::time::sleep(time * IDLE_TIMES).await; // what they use over some time
        let Some(after) = usage(crew).await? else { return Ok(None) };
        let took = (clock::now() - began) as f64;
        crew.check().await?;
        let peers = after.len();
        let cpu: u64 = after.iter().zip(&before).map(|(after, before)| after.cpu.saturating_sub(before.cpu)).sum();
        let average = |sum: u64| sum / peers.max(1) as u64;
        Ok(Some(Figures::Idle {
            peers,
            rss_kib: average(after.iter().map(|usage| usage.rss).sum()),
            pss_kib: after.iter().map(|usage| usage.pss).sum::<Option<u64>>().map(average),
            cpu_percent: (cpu as f64 / took / peers.max(1) as f64 * 1e4).round() / 100.0,
            seconds: tenths(took / 1e9),
        }))
    }

    /// Sends from one to all those takers, each a peer with so many nodes.
    async fn stream(
        &mut self,
        crew: &mut Crew,
        size: usize,
        rate: Option<f64>,
        takers: &[(usize, usize)],
    ) -> Result<(Sent, Taken), BenchError> {
        let (topic, work) = (self.topic_name(), self.work(size));
        for (peer, nodes) in takers {
            let take = Take { topic: topic.clone(), name: format!("taker-{peer}"), nodes: *nodes };
            crew.ask(*peer, &Order::Take(take), Duration::ZERO).await?;
        }
        let listeners = takers.iter().map(|(_, nodes)| nodes).sum();
        let flood = Flood { topic, listeners, work, rate };
        let time = work.warm + 2 * work.time;
        let sent = match crew.ask(SOURCE, &Order::Flood(flood), time).await? {
            Answer::Sent(sent) => sent,
            answer => return Err(crew.unexpected(SOURCE, &answer)),
        };
        let mut all: Option<Taken> = None;
        for (peer, _) in takers {
            let taken = match crew.answer(*peer, time).await? {
                Answer::Taken(taken) => taken,
                answer => return Err(crew.unexpected(*peer, &answer)),
            };
            all = Some(match all {
                None => taken,
                Some(all) => Taken {
                    messages: all.messages + taken.messages,
                    bytes: all.bytes + taken.bytes,
                    first: all.first.min(taken.first),
                    last: all.last.max(taken.last),
                    frames: all.frames + taken.frames,
                    latency: None, // of one listener only
                },
            });
        }
        let taken = all.expect("at least one listens");
        if taken.messages > sent.messages * listeners as u64 {
            let why = format!("{} messages came of {} that were sent", taken.messages, sent.messages);
            return Err(BenchError::Failed { peer: takers[0].0, why });
        }
        Ok((sent, taken))
    }

    fn topic_name(&mut self) -> String {
        self.topics += 1;
        format!("stream/{}", self.topics)
    }

    fn sizes(&self, own: &[usize]) -> Vec<usize> {
        if self.plan.sizes.is_empty() { own.to_vec() } else { self.plan.sizes.clone() }
    }

    fn work(&self, size: usize) -> Work {
        Work { size, warm: self.plan.time / 5, time: self.plan.time, count: self.plan.count }
    }

    fn doing(&mut self, what: &str) -> Result<(), BenchError> {
        self.say(Notice::Doing(format!("{}: {what}", self.link.name())))
    }

    fn told(&mut self, bench: Bench, figures: Figures) -> Result<(), BenchError> {
        self.told += 1;
        self.say(Notice::Row(Row::new(bench, self.link, figures)))
    }

    fn say(&mut self, notice: Notice) -> Result<(), BenchError> {
        if (self.tell)(notice) { Ok(()) } else { Err(BenchError::Unwanted) }
    }
}

async fn usage(crew: &mut Crew) -> Result<Option<Vec<Usage>>, BenchError> {
    let answers = crew.ask_all(&Order::Usage).await?;
    Ok(answers.into_iter().map(|answer| if let Answer::Usage(usage) = answer { usage } else { None }).collect())
}

fn megabytes(bytes: u64, nanoseconds: u64) -> f64 {
    tenths(bytes as f64 * 1e3 / nanoseconds.max(1) as f64)
}

/// Sizes of messages where none are given, in bytes.
const TOPIC_SIZES: [usize; 4] = [64, 1 << 10, 64 << 10, 1 << 20];
const SMALL: usize = 64;
/// How much longer idle peers are watched than others are measured: they do little, once a second.
const IDLE_TIMES: u32 = 2;
