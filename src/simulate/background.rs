//! What a VPC does when nobody attacks it.
//!
//! It is meant to be hard: most of what is regular, rare, long or bursty here is harmless. Every host calls the same
//! agents' endpoints like clockwork; some poll one rare partner; load balancers probe every few seconds; pools hold thin
//! connections for hours; the internet knocks at every door all day.

use std::sync::Arc;

use super::habit::{Habit, Process, Rhythm, Shape, Standing, Timing};
use super::job::Job;
use super::session::{Millis, Outcome, Party, Session, Stream, Talk, Volume, message, tcp};
use super::vpc::{Role, Vpc, public_v4, public_v6};
use super::wire::Wire;
use crate::flow::{Address, EventTime, protocol};
use crate::random::{Random, mix};

/// A process and the second of its first act.
pub type Starting = (u32, Box<dyn Process>);

/// What the whole VPC knows outside.
pub(super) struct World {
    ssm: Arc<[Party]>,
    cloudwatch: Arc<[Party]>,
    logs: Arc<[Party]>,
    /// Object storage.
    pub s3: Arc<[Party]>,
    sqs: Arc<[Party]>,
    edr: Arc<[Party]>,
    time: Arc<[Party]>,
    /// Where packages come from.
    pub mirrors: Arc<[Party]>,
    /// Where sources come from.
    pub forges: Arc<[Party]>,
    saas: Arc<[Party]>,
    name_servers: Arc<[Party]>,
}

impl World {
    /// The same for the same seed.
    pub fn new(seed: u64) -> World {
        let mut random = Random::new(seed, "world", 0);
        let mut aws = |prefix: u32, count: usize| -> Arc<[Party]> {
            (0..count).map(|_| Party::outside(Address::v4(prefix | random.bits() as u32 & 0xffff))).collect()
        };
        let (ssm, cloudwatch, logs) = (aws(0x345e_0000, 3), aws(0x345e_0000, 4), aws(0x342e_0000, 4));
        let (s3, sqs) = (aws(0x34d8_0000, 24), aws(0x3477_0000, 4));
        let mut public = |count: usize| -> Arc<[Party]> {
            (0..count).map(|_| Party::outside(Address::v4(public_v4(random.bits())))).collect()
        };
        World {
            ssm,
            cloudwatch,
            logs,
            s3,
            sqs,
            edr: public(3),
            time: public(6),
            mirrors: public(4),
            forges: public(6),
            saas: public(80),
            name_servers: public(40),
        }
    }
}

/// How the background is set.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Fixes everything.
    pub seed: u64,
    /// Multiplies what visitors do; 1 is about two page views a second for each web host at the busiest hour.
    pub demand: f64,
    /// Share of visitors who come by IPv6.
    pub ipv6_share: f64,
    /// Whether an allow-listed vulnerability scanner works its way through the VPC.
    pub scanner: bool,
    /// Share of hosts with a recurring job.
    pub jobs: f64,
}

/// Everything benign that goes on in a VPC.
pub fn populate(vpc: &Vpc, origin: EventTime, settings: Settings) -> Vec<Starting> {
    let world = World::new(settings.seed);
    let mut cast = Cast { vpc, origin, settings, world, starting: Vec::new(), count: 0 };
    for host in 0..vpc.hosts.len() as u32 {
        cast.every_host(host);
        match vpc.hosts[host as usize].role {
            Role::LoadBalancer => cast.load_balancer(host),
            Role::Web => cast.web(host),
            Role::App => cast.app(host),
            Role::Database => cast.database(host),
            Role::Container => cast.container(host),
            Role::Runner => cast.runner(host),
            Role::Batch => cast.batch(host),
            Role::Monitor => cast.monitor(host),
            Role::Gateway => cast.gateway(host),
            Role::Bastion => cast.bastion(host),
            Role::Resolver => cast.resolver(host),
            Role::Cache | Role::Proxy | Role::Nat | Role::Spare => {}
        }
    }
    cast.visitors();
    cast.radiation();
    if settings.scanner {
        cast.scanner();
    }
    cast.jobs();
    cast.starting
}

const fn shape(out: f64, back: f64, seconds: f64) -> Shape {
    Shape { out: (out, 0.4), back: (back, 0.8), seconds: (seconds, 0.7) }
}

/// Sizes that hardly vary: what software sends of its own accord.
const fn steady(out: f64, back: f64, seconds: f64) -> Shape {
    Shape { out: (out, 0.03), back: (back, 0.03), seconds: (seconds, 0.3) }
}

struct Cast<'a> {
    vpc: &'a Vpc,
    origin: EventTime,
    settings: Settings,
    world: World,
    starting: Vec<Starting>,
    count: u64,
}

impl Cast<'_> {
    fn random(&mut self, purpose: &str) -> Random {
        self.count += 1;
        Random::new(self.settings.seed, purpose, self.count)
    }

    /// A habit with the usual choices: TCP, at any time of day, one request at a time, one server an hour.
    fn habit(&mut self, client: u32, servers: Arc<[Party]>, port: u16, timing: Timing, shape: Shape) -> Habit {
        Habit {
            random: self.random("habit"),
            client: self.vpc.party(client),
            servers,
            sticky: 3600,
            port,
            protocol: protocol::TCP,
            timing,
            rhythm: Rhythm::Flat,
            shape,
            burst: 1,
            silent: 0.001,
            truth: 0,
        }
    }

    fn add(&mut self, mut habit: Habit) {
        let first = habit.first(self.origin);
        self.starting.push((first, Box::new(habit)));
    }

    fn stand(&mut self, client: Party, servers: Arc<[Party]>, port: u16, life: f64, streams: &[Stream]) {
        let random = self.random("standing");
        let standing = Standing {
            random,
            client,
            servers,
            port,
            life,
            pause: 2.0,
            greeting: tcp(500, 3_000),
            streams: streams.into(),
        };
        self.starting.push((0, Box::new(standing)));
    }

    fn all(&self, roles: &[Role]) -> Arc<[Party]> {
        self.vpc.with_role(roles).into_iter().map(|host| self.vpc.party(host)).collect()
    }

    /// Agents, time, names, updates: what an image brings along.
    fn every_host(&mut self, host: u32) {
        use Timing::{Every, Poisson};
        let role = self.vpc.hosts[host as usize].role;
        if matches!(role, Role::LoadBalancer | Role::Nat | Role::Spare) {
            return;
        }
        let mut traits = self.random("traits");
        let w = &self.world;
        let (ssm, cloudwatch, logs, edr) = (w.ssm.clone(), w.cloudwatch.clone(), w.logs.clone(), w.edr.clone());
        let (time, mirrors, saas) = (w.time.clone(), w.mirrors.clone(), w.saas.clone());
        // The SSM agent holds a control channel open and reports its health every five minutes.
        let (out, back) = message(90, 60);
        let pings = Stream { every: 60_000, offset: 5_000, jitter: 0.02, presence: 1.0, out, back, spread: 0.05 };
        self.stand(self.vpc.party(host), ssm.clone(), 443, 3_000.0, &[pings]);
        let health = self.habit(host, ssm, 443, Every { seconds: 300.0, jitter: 0.0 }, steady(2_100.0, 1_400.0, 0.4));
        self.add(health);
        let metrics = Every { seconds: 60.0, jitter: 0.0 };
        let metrics = self.habit(host, cloudwatch, 443, metrics, steady(4_200.0, 800.0, 0.3));
        self.add(metrics);
        let shipping = Every { seconds: traits.between(8.0, 40.0), jitter: 0.6 };
        let shipping = self.habit(host, logs, 443, shipping, shape(3_000.0, 700.0, 0.2));
        self.add(shipping);
        let seconds = traits.pick(&[30.0, 60.0, 120.0]);
        let heartbeat = self.habit(host, edr, 443, Every { seconds, jitter: 0.05 }, steady(900.0, 500.0, 0.5));
        self.add(heartbeat);
        let poll = traits.pick(&[64.0, 256.0, 1024.0]);
        let clock = self.habit(host, time, 123, Every { seconds: poll, jitter: 0.02 }, steady(48.0, 48.0, 0.02));
        self.add(Habit { protocol: protocol::UDP, sticky: 86_400 * 7, ..clock });
        let resolvers = self.all(&[Role::Resolver]);
        let names = Poisson { per_second: traits.between(0.02, 0.25) };
        let names = self.habit(host, resolvers, 53, names, shape(40.0, 120.0, 0.01));
        if role != Role::Resolver {
            self.add(Habit { protocol: protocol::UDP, sticky: 300, burst: 4, rhythm: Rhythm::Visitors, ..names });
        }
        let updates = Every { seconds: 21_600.0, jitter: 0.5 };
        let updates = self.habit(host, mirrors, 443, updates, shape(900.0, 400_000.0, 3.0));
        self.add(Habit { burst: 6, ..updates });
        // One host in ten polls one rare partner by the clock, as a beacon would.
        if traits.chance(0.1) {
            let partner: Arc<[Party]> = [traits.pick(&saas)].into();
            let (seconds, jitter) = (traits.pick(&[30.0, 60.0, 300.0, 900.0, 3600.0]), traits.pick(&[0.0, 0.02, 0.2]));
            let sizes = steady(traits.between(300.0, 2_000.0), traits.between(300.0, 8_000.0), 0.6);
            let polling = self.habit(host, partner, 443, Every { seconds, jitter }, sizes);
            self.add(Habit { sticky: u32::MAX, ..polling });
        }
        // One in fifteen holds a channel to a rare service open for hours: chat, push, market data.
        if traits.chance(0.07) {
            let partner: Arc<[Party]> = [traits.pick(&saas)].into();
            let (out, back) = message(traits.between(40.0, 200.0) as u64, traits.between(80.0, 900.0) as u64);
            let every = (traits.between(10.0, 55.0) * 1000.0) as Millis;
            let jitter = traits.pick(&[0.0, 0.1, 0.8]);
            let talk = Stream { every, offset: 900, jitter, presence: 0.95, out, back, spread: 0.4 };
            self.stand(self.vpc.party(host), partner, traits.pick(&[443, 443, 8443, 5222, 8883]), 9_000.0, &[talk]);
        }
    }

    /// Health checks every few seconds, from every load balancer to every web host.
    fn load_balancer(&mut self, host: u32) {
        for target in self.vpc.with_role(&[Role::Web]) {
            let mut random = self.random("health check");
            let every = Timing::Every { seconds: random.pick(&[5.0, 10.0, 15.0]), jitter: 0.0 };
            let target: Arc<[Party]> = [self.vpc.party(target)].into();
            let check = self.habit(host, target, 80, every, steady(130.0, 190.0, 0.02));
            self.add(check);
        }
    }

    fn web(&mut self, host: u32) {
        let (apps, caches, s3) = (self.all(&[Role::App]), self.all(&[Role::Cache]), self.world.s3.clone());
        for _ in 0..3 {
            let (out, back) = message(700, 3_500);
            let calls = Stream { every: 9_000, offset: 300, jitter: 1.0, presence: 0.8, out, back, spread: 0.7 };
            self.stand(self.vpc.party(host), apps.clone(), 8080, 900.0, &[calls]);
        }
        let (out, back) = message(120, 400);
        let lookups = Stream { every: 6_000, offset: 100, jitter: 1.0, presence: 0.9, out, back, spread: 0.5 };
        self.stand(self.vpc.party(host), caches, 6379, 20_000.0, &[lookups]);
        let assets = Timing::Poisson { per_second: 0.03 };
        let assets = self.habit(host, s3, 443, assets, Shape { back: (60_000.0, 1.6), ..shape(500.0, 0.0, 0.4) });
        self.add(Habit { sticky: 60, rhythm: Rhythm::Visitors, burst: 3, ..assets });
    }

    /// Pools to databases and caches; calls to a few services outside, some of them rare.
    fn app(&mut self, host: u32) {
        let mut traits = self.random("app");
        let (databases, caches, sqs) = (self.all(&[Role::Database]), self.all(&[Role::Cache]), self.world.sqs.clone());
        for _ in 0..traits.pick(&[4, 6, 10]) {
            let (out, back) = message(350, 2_200);
            let busy = 10_000 + traits.below(20_000) as Millis;
            let queries = Stream { every: busy, offset: 40, jitter: 1.0, presence: 0.8, out, back, spread: 0.8 };
            let (out, back) = message(30, 30);
            let alive = Stream { every: 30_000, offset: 30_000, jitter: 0.0, presence: 1.0, out, back, spread: 0.0 };
            self.stand(self.vpc.party(host), databases.clone(), 5432, 1_800.0, &[queries, alive]);
        }
        let (out, back) = message(90, 300);
        let lookups = Stream { every: 8_000, offset: 10, jitter: 1.0, presence: 0.9, out, back, spread: 0.5 };
        self.stand(self.vpc.party(host), caches, 6379, 20_000.0, &[lookups]);
        // Long polls of a queue: 20 s each, one after the other.
        let polls =
            self.habit(host, sqs, 443, Timing::Every { seconds: 20.0, jitter: 0.02 }, steady(900.0, 500.0, 19.0));
        self.add(polls);
        for _ in 0..1 + traits.below(5) {
            let partner: Arc<[Party]> = [traits.pick(&self.world.saas)].into();
            let per_second = traits.log_normal(0.01, 1.2).min(0.5);
            let calls = self.habit(host, partner, 443, Timing::Poisson { per_second }, shape(1_500.0, 2_500.0, 0.5));
            self.add(Habit { rhythm: Rhythm::Visitors, sticky: u32::MAX, burst: 2, silent: 0.01, ..calls });
        }
    }

    /// Replication, and a dump to S3 at night.
    fn database(&mut self, host: u32) {
        let others: Arc<[Party]> = self
            .vpc
            .with_role(&[Role::Database])
            .into_iter()
            .filter(|&h| h != host)
            .map(|h| self.vpc.party(h))
            .collect();
        if !others.is_empty() {
            let (out, back) = message(60, 9_000);
            let replicate = Stream { every: 2_500, offset: 10, jitter: 0.9, presence: 1.0, out, back, spread: 0.9 };
            self.stand(self.vpc.party(host), others, 5432, 200_000.0, &[replicate]);
        }
        self.nightly(host, 2_000_000_000.0, 3600 * 2);
    }

    fn nightly(&mut self, host: u32, bytes: f64, at: u32) {
        let s3 = self.world.s3.clone();
        let timing = Timing::Daily { at, spread: 1_800.0 };
        let dump = Shape { out: (bytes, 0.5), back: (60_000.0, 0.3), seconds: (400.0, 0.4) };
        let dump = self.habit(host, s3, 443, timing, dump);
        self.add(Habit { burst: 4, ..dump });
    }

    /// Containers: short-lived calls to neighbours, images from a registry, now and then an API outside.
    fn container(&mut self, host: u32) {
        let mut traits = self.random("container");
        let neighbours = self.all(&[Role::Container, Role::App]);
        let per_second = traits.between(0.05, 0.3);
        let calls = self.habit(host, neighbours, 8080, Timing::Poisson { per_second }, shape(600.0, 1_800.0, 0.1));
        self.add(Habit { sticky: 7, burst: 3, rhythm: Rhythm::Visitors, ..calls });
        let (s3, saas) = (self.world.s3.clone(), self.world.saas.clone());
        let images = Timing::Poisson { per_second: 1.0 / 2_400.0 };
        let images = self.habit(host, s3, 443, images, Shape { back: (30e6, 1.0), ..shape(2_000.0, 0.0, 8.0) });
        self.add(Habit { sticky: 5, burst: 8, ..images });
        let apis = Timing::Poisson { per_second: traits.between(0.001, 0.02) };
        let apis = self.habit(host, saas, 443, apis, shape(1_200.0, 4_000.0, 0.6));
        self.add(Habit { sticky: 900, burst: 2, silent: 0.02, ..apis });
    }

    /// Build jobs in office hours: a storm of downloads, then silence.
    fn runner(&mut self, host: u32) {
        let (forges, mirrors, s3) = (self.world.forges.clone(), self.world.mirrors.clone(), self.world.s3.clone());
        let jobs = Timing::Poisson { per_second: 1.0 / 500.0 };
        let clone = self.habit(host, forges, 443, jobs, Shape { back: (3e6, 1.2), ..shape(4_000.0, 0.0, 5.0) });
        self.add(Habit { sticky: 30, burst: 12, rhythm: Rhythm::Office, ..clone });
        let packages = self.habit(host, mirrors, 443, jobs, Shape { back: (400_000.0, 1.5), ..shape(900.0, 0.0, 1.5) });
        self.add(Habit { sticky: 2, burst: 60, rhythm: Rhythm::Office, ..packages });
        let artifacts = self.habit(host, s3, 443, jobs, Shape { out: (20e6, 1.0), ..shape(0.0, 2_000.0, 6.0) });
        self.add(Habit { sticky: 9, burst: 4, rhythm: Rhythm::Office, ..artifacts });
        // The runner asks its forge for work over one long poll after the other.
        let forges = self.world.forges.clone();
        let polls =
            self.habit(host, forges, 443, Timing::Every { seconds: 50.0, jitter: 0.03 }, steady(700.0, 900.0, 49.0));
        self.add(polls);
    }

    /// Night jobs; file exchange with a partner every hour; all of it through the proxy.
    fn batch(&mut self, host: u32) {
        let mut traits = self.random("batch");
        self.nightly(host, 8_000_000_000.0, 3600);
        let (proxies, partner) = (self.all(&[Role::Proxy]), [traits.pick(&self.world.saas)].into());
        let calls = Timing::Poisson { per_second: 0.02 };
        let calls = self.habit(host, proxies, 3128, calls, shape(1_000.0, 6_000.0, 0.8));
        self.add(Habit { burst: 3, ..calls });
        let transfer = Timing::Every { seconds: 3600.0, jitter: 0.01 };
        let transfer =
            self.habit(host, partner, 22, transfer, Shape { out: (200_000.0, 1.0), ..shape(0.0, 5_000.0, 12.0) });
        self.add(transfer);
    }

    /// Scrapes every host every 15 s, and pings it.
    fn monitor(&mut self, host: u32) {
        for target in 0..self.vpc.hosts.len() as u32 {
            if !self.vpc.hosts[target as usize].role.services().contains(&9100) {
                continue;
            }
            let target: Arc<[Party]> = [self.vpc.party(target)].into();
            let every = Timing::Every { seconds: 15.0, jitter: 0.0 };
            let scrape = self.habit(host, target.clone(), 9100, every, steady(250.0, 18_000.0, 0.05));
            self.add(scrape);
            let ping =
                self.habit(host, target, 0, Timing::Every { seconds: 60.0, jitter: 0.0 }, steady(56.0, 56.0, 0.001));
            self.add(Habit { protocol: protocol::ICMP, ..ping });
        }
    }

    /// Devices and browsers that stay connected, from everywhere.
    fn gateway(&mut self, host: u32) {
        let mut traits = self.random("gateway");
        for _ in 0..20 {
            let client = Party::outside(Address::v4(public_v4(traits.bits())));
            let (out, back) = message(traits.between(20.0, 300.0) as u64, traits.between(2.0, 200.0) as u64);
            let every = (traits.pick(&[20.0, 30.0, 55.0, 60.0, 240.0]) * 1000.0) as Millis;
            let jitter = traits.pick(&[0.01, 0.01, 0.5]);
            let alive = Stream { every, offset: 1_000, jitter, presence: 0.98, out, back, spread: 0.3 };
            let port = traits.pick(&[443, 8883]);
            self.stand(client, [self.vpc.party(host)].into(), port, 5_000.0, &[alive]);
        }
    }

    /// Administrators come in by SSH and go on from there.
    fn bastion(&mut self, host: u32) {
        let administrators: Arc<[Party]> = self.vpc.administrators.iter().map(|&a| Party::outside(a)).collect();
        let inside = self.all(&[Role::Web, Role::App, Role::Database, Role::Container]);
        let (out, back) = message(70, 160);
        let typing = Stream { every: 1_500, offset: 2_000, jitter: 1.0, presence: 0.4, out, back, spread: 0.9 };
        for administrator in administrators.iter() {
            let own: Arc<[Party]> = [self.vpc.party(host)].into();
            self.stand(*administrator, own, 22, 1_500.0, &[typing]);
        }
        self.stand(self.vpc.party(host), inside, 22, 900.0, &[typing]);
    }

    /// Our resolvers ask name servers everywhere, mostly once.
    fn resolver(&mut self, host: u32) {
        let servers = self.world.name_servers.clone();
        let timing = Timing::Poisson { per_second: (0.02 * self.vpc.hosts.len() as f64).min(20.0) };
        let queries = self.habit(host, servers, 53, timing, shape(45.0, 180.0, 0.03));
        self.add(Habit {
            protocol: protocol::UDP,
            sticky: 1,
            burst: 2,
            silent: 0.02,
            rhythm: Rhythm::Visitors,
            ..queries
        });
    }

    fn visitors(&mut self) {
        let random = self.random("visitors");
        let web = self.vpc.with_role(&[Role::Web]);
        let visitors = Visitors {
            random,
            balancers: self.vpc.with_role(&[Role::LoadBalancer]),
            per_second: 2.0 * web.len() as f64 * self.settings.demand,
            web,
            ipv6_share: self.settings.ipv6_share,
            crowd: (0, 0, 1.0),
        };
        self.starting.push((0, Box::new(visitors)));
    }

    fn radiation(&mut self) {
        let random = self.random("radiation");
        let targets: Vec<u32> = self.vpc.with_role(&[Role::LoadBalancer, Role::Bastion, Role::Nat, Role::Gateway]);
        // Each public address is probed every ten seconds or so, which is what honeypots report.
        let per_second = 0.1 * targets.len() as f64;
        self.starting.push((0, Box::new(Radiation { random, targets, per_second })));
    }

    fn jobs(&mut self) {
        let (seed, share) = (self.settings.seed, self.settings.jobs);
        for host in (0..self.vpc.hosts.len() as u32).filter(|host| Job::is_on(seed, share, self.vpc, *host)) {
            self.starting.extend(Job::of(seed, self.vpc, &self.world, host).processes(self.vpc));
        }
    }

    fn scanner(&mut self) {
        let random = self.random("scanner");
        let Some(&host) = self.vpc.with_role(&[Role::Monitor]).last() else { return };
        self.starting.push((30, Box::new(Inventory { random, host, next: 0 })));
    }
}

/// Page views from everywhere, through the load balancers to the web hosts; now and then a flash crowd.
struct Visitors {
    random: Random,
    balancers: Vec<u32>,
    web: Vec<u32>,
    per_second: f64,
    ipv6_share: f64,
    /// The next flash crowd: from, to, times the usual.
    crowd: (u32, u32, f64),
}

impl Visitors {
    fn view(&mut self, wire: &mut Wire) {
        let balancer = self.random.pick(&self.balancers);
        // People come again: about half of the views are of the two hundred most frequent visitors of the hour.
        let who = if self.random.chance(0.5) {
            mix(self.random.below(200) as u64 ^ u64::from(wire.now() / 3600) << 20)
        } else {
            self.random.bits()
        };
        let by_v6 = (who >> 20) as f64 / (1u64 << 44) as f64 <= self.ipv6_share;
        let (client, server) = match wire.vpc.party_v6(balancer).filter(|_| by_v6) {
            Some(server) => (Party::outside(public_v6(who)), server),
            None => (Party::outside(Address::v4(public_v4(who))), wire.vpc.party(balancer)),
        };
        let is_download = self.random.chance(0.004);
        let sizes = match is_download {
            true => Shape { out: (900.0, 0.5), back: (40e6, 1.2), seconds: (30.0, 1.0) },
            false => Shape { out: (1_400.0, 0.7), back: (22_000.0, 1.3), seconds: (3.0, 1.2) },
        };
        let port = if self.random.chance(0.06) { 80 } else { 443 };
        self.connect(wire, client, server, port, sizes);
        // The balancer keeps its own connections to the web hosts; a third of the views need a new one.
        if self.random.chance(0.35) {
            let (from, to) = (wire.vpc.party(balancer), wire.vpc.party(self.random.pick(&self.web)));
            self.connect(
                wire,
                from,
                to,
                80,
                Shape { out: (4_000.0, 0.7), back: (60_000.0, 1.0), seconds: (12.0, 1.0) },
            );
        }
    }

    fn connect(&mut self, wire: &mut Wire, client: Party, server: Party, port: u16, sizes: Shape) {
        let (talk, length) = sizes.draw(protocol::TCP, &mut self.random);
        wire.open(Session {
            client,
            server,
            client_port: 1024 + self.random.below(64_512) as u16,
            server_port: port,
            protocol: protocol::TCP,
            start: Millis::from(wire.now()) * 1000 + self.random.below(1000) as Millis,
            length,
            talk,
            outcome: Outcome::Answered,
            truth: 0,
            seed: self.random.bits(),
        });
    }
}

impl Process for Visitors {
    fn fire(&mut self, wire: &mut Wire) -> Option<u32> {
        let now = wire.now();
        if now >= self.crowd.1 {
            // A flash crowd every six hours or so: for minutes, several times the usual.
            let from = now + self.random.exponential(21_600.0) as u32 + 60;
            self.crowd = (from, from + self.random.between(180.0, 900.0) as u32, self.random.between(3.0, 10.0));
        }
        let (from, to, times) = self.crowd;
        let crowd = if (from..to).contains(&now) { times } else { 1.0 };
        let rate = self.per_second * crowd * Rhythm::Visitors.factor(wire.origin().plus(now));
        for _ in 0..self.random.poisson(rate) {
            self.view(wire);
        }
        Some(now + 1)
    }
}

/// Internet background radiation: single probes of many sources at what is public, nearly all rejected.
struct Radiation {
    random: Random,
    targets: Vec<u32>,
    per_second: f64,
}

impl Process for Radiation {
    fn fire(&mut self, wire: &mut Wire) -> Option<u32> {
        const PORTS: [u16; 24] = [
            22, 22, 23, 23, 23, 445, 445, 3389, 3389, 80, 443, 8080, 5900, 1433, 3306, 6379, 2323, 8443, 5555, 9200,
            25, 110, 27017, 60023,
        ];
        for _ in 0..self.random.poisson(self.per_second) {
            let target = self.random.pick(&self.targets);
            // Half comes from sources that come again all day, each with a liking for one port.
            let regular = self.random.chance(0.5);
            let who = if regular { mix(self.random.below(3_000) as u64 ^ 0x5ca) } else { self.random.bits() };
            let liking = if regular { mix(who) } else { self.random.bits() };
            let port = if self.random.chance(0.25) {
                1 + self.random.below(65_535) as u16
            } else {
                PORTS[(liking % PORTS.len() as u64) as usize]
            };
            let source = Party::outside(Address::v4(public_v4(who)));
            let udp = self.random.chance(0.07);
            let outcome = if udp { Outcome::Rejected } else { wire.vpc.verdict(source, target, port) };
            let (out, back) = match outcome {
                Outcome::Answered => tcp(self.random.pick(&[0, 0, 120]), self.random.pick(&[0, 0, 300])),
                _ => (Volume::of(1, self.random.pick(&[40, 44, 60])), Volume::default()),
            };
            wire.open(Session {
                client: source,
                server: wire.vpc.party(target),
                client_port: 1024 + self.random.below(64_512) as u16,
                server_port: port,
                protocol: if udp { protocol::UDP } else { protocol::TCP },
                start: Millis::from(wire.now()) * 1000 + self.random.below(1000) as Millis,
                length: if outcome == Outcome::Answered { 400 } else { 0 },
                talk: Talk::Brief { out, back },
                outcome,
                truth: 0,
                seed: self.random.bits(),
            });
        }
        Some(wire.now() + 1)
    }
}

/// The vulnerability scanner of the house: every host, its common ports, a host every few seconds.
struct Inventory {
    random: Random,
    host: u32,
    next: u32,
}

impl Process for Inventory {
    fn fire(&mut self, wire: &mut Wire) -> Option<u32> {
        let target = self.next % wire.vpc.hosts.len() as u32;
        self.next += 1;
        let client = wire.vpc.party(self.host);
        for port in super::attack::port_scan::COMMON_PORTS {
            let outcome = wire.vpc.verdict(client, target, *port);
            wire.open(super::attack::port_scan::probe(
                &mut self.random,
                client,
                wire.vpc.party(target),
                *port,
                outcome,
                wire.now(),
                0,
            ));
        }
        Some(wire.now() + 5 + self.random.below(10) as u32)
    }
}
