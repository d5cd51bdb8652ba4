//! Attacks, as published descriptions have them, not as our detectors would like them.
//!
//! Each variant is a process of its own whose parameters (rates, ports, periods, sizes, victims) are drawn from the seed
//! within what is reported of real ones; the basis of its truth row says what was drawn. An attacker uses the same wire
//! as everybody: security groups reject him, NAT gateways hide him, aggregation cuts his sessions.

pub mod beacon;
pub mod behavior;
pub mod brute_force;
pub mod ddos;
pub mod exfiltration;
pub mod mining;
pub mod port_scan;
pub mod tor;

use std::str::FromStr;

use super::background::Starting;
use super::job::Job;
use super::labels::Truth;
use super::session::Party;
use super::vpc::{Role, Vpc, public_v4};
use super::wire::Wire;
use crate::flow::Address;
use crate::random::Random;

/// How hard, relative to what is usual for the attack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Intensity {
    /// Someone who wants to stay unseen, or a small botnet.
    Low,
    /// The usual.
    #[default]
    Medium,
    /// Someone who does not care.
    High,
}

impl Intensity {
    /// One of three values.
    pub fn of<T>(self, low: T, medium: T, high: T) -> T {
        match self {
            Intensity::Low => low,
            Intensity::Medium => medium,
            Intensity::High => high,
        }
    }
}

/// One kind of attack that is to happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Campaign {
    /// Name of the threat.
    pub threat: &'static str,
    /// Name of the variant.
    pub variant: &'static str,
    /// How hard.
    pub intensity: Intensity,
}

/// Every variant of every threat.
pub const VARIANTS: [(&str, &str); 37] = [
    ("port_scan", "vertical"),
    ("port_scan", "horizontal"),
    ("port_scan", "block"),
    ("port_scan", "slow"),
    ("port_scan", "distributed"),
    ("port_scan", "lateral"),
    ("port_scan", "outbound"),
    ("ddos", "syn_flood"),
    ("ddos", "reflection"),
    ("ddos", "icmp"),
    ("ddos", "connections"),
    ("ddos", "many_sources"),
    ("ddos", "outbound"),
    ("c2_beacon", "fixed"),
    ("c2_beacon", "jittered"),
    ("c2_beacon", "slow"),
    ("c2_beacon", "failing"),
    ("c2_beacon", "channel"),
    ("c2_beacon", "short"),
    ("c2_beacon", "proxied"),
    ("crypto_mining", "stratum"),
    ("crypto_mining", "odd_port"),
    ("crypto_mining", "short"),
    ("crypto_mining", "tls"),
    ("tor", "client"),
    ("tor", "busy"),
    ("tor", "unlisted"),
    ("tor", "bootstrap"),
    ("behavior", "off_hours"),
    ("behavior", "off_phase"),
    ("behavior", "off_beat"),
    ("brute_force", "outbound"),
    ("brute_force", "slow"),
    ("brute_force", "inside"),
    ("exfiltration", "bulk"),
    ("exfiltration", "slow"),
    ("exfiltration", "spread"),
];

/// What `all` leaves out: what is out of place only after hours or days of habit, and looks like nothing in an hour; and what came
/// later, so that `all` goes on to mean the same.
const NOT_IN_ALL: [&str; 3] = ["behavior", "brute_force", "exfiltration"];

/// What the name of its threat leaves out: it needs hosts with jobs (`Scenario::jobs`) and is asked for by its own.
const BY_NAME: &str = "off_beat";

/// What `--threats` says: a list of `threat[.variant][:intensity]`, or `all` (but `behavior`,
/// `brute_force` and `exfiltration`), or `none`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Campaigns(pub Vec<Campaign>);

/// Why a list of threats could not be understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CampaignError {
    /// No variant has this name.
    #[error(
        "no threat is named `{0}`: write all, none, or a list of threat[.variant][:low|medium|high], threats being {1}"
    )]
    Unknown(String, String),
    /// Not low, medium or high.
    #[error("`{0}` is no intensity: write low, medium or high")]
    Intensity(String),
}

impl FromStr for Campaigns {
    type Err = CampaignError;

    fn from_str(text: &str) -> Result<Campaigns, CampaignError> {
        let mut campaigns = Vec::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty() && *item != "none") {
            let (name, intensity) = item.split_once(':').unwrap_or((item, "medium"));
            let intensity = match intensity {
                "low" => Intensity::Low,
                "medium" => Intensity::Medium,
                "high" => Intensity::High,
                other => return Err(CampaignError::Intensity(other.to_owned())),
            };
            let before = campaigns.len();
            let named = |threat: &str, variant: &str| {
                (name == "all" && !NOT_IN_ALL.contains(&threat))
                    || (name == threat && variant != BY_NAME)
                    || name.split_once('.') == Some((threat, variant))
            };
            campaigns.extend(
                VARIANTS.iter().filter(|(threat, variant)| named(threat, variant)).map(|&(threat, variant)| Campaign {
                    threat,
                    variant,
                    intensity,
                }),
            );
            if campaigns.len() == before {
                let known: Vec<String> =
                    VARIANTS.iter().map(|(threat, variant)| format!("{threat}.{variant}")).collect();
                return Err(CampaignError::Unknown(name.to_owned(), known.join(", ")));
            }
        }
        Ok(Campaigns(campaigns))
    }
}

/// What an attack's constructor has to work with.
pub struct Stage<'a> {
    /// Where the truth is stated.
    pub wire: &'a mut Wire,
    /// The attack's own stream.
    pub random: Random,
    /// How hard.
    pub intensity: Intensity,
    /// The simulation's.
    pub seed: u64,
    /// The share of hosts that have jobs.
    pub jobs: f64,
    /// Hosts that are already part of an attack: one story per host, so that a label means one thing.
    taken: &'a mut Vec<u32>,
    /// The processes of the attack, with the second of their first act.
    pub starting: Vec<Starting>,
}

impl Stage<'_> {
    /// A host of one of these roles that runs all the time and is in no other attack, as long as there is one.
    pub fn host(&mut self, roles: &[Role]) -> u32 {
        let vpc: &Vpc = &self.wire.vpc;
        let steady = |h: &u32| vpc.hosts[*h as usize].up == (0, self.wire.seconds());
        let all: Vec<u32> = vpc.with_role(roles);
        let free: Vec<u32> = all.iter().copied().filter(|h| steady(h) && !self.taken.contains(h)).collect();
        let host = if free.is_empty() { self.random.pick(&all) } else { self.random.pick(&free) };
        self.taken.push(host);
        host
    }

    /// A host that has a job, as long as there is one; else one that could have.
    pub fn host_with_job(&mut self) -> u32 {
        let vpc: &Vpc = &self.wire.vpc;
        let (seed, share) = (self.seed, self.jobs);
        let free = |h: &u32| vpc.hosts[*h as usize].up == (0, self.wire.seconds()) && !self.taken.contains(h);
        let with: Vec<u32> =
            (0..vpc.hosts.len() as u32).filter(|h| free(h) && Job::is_on(seed, share, vpc, *h)).collect();
        if with.is_empty() {
            return self.host(&Job::ROLES);
        }
        let host = self.random.pick(&with);
        self.taken.push(host);
        host
    }

    /// A host that could have been compromised.
    pub fn victim(&mut self) -> Party {
        let host = self.host(&[Role::Web, Role::App, Role::Container, Role::Runner, Role::Batch, Role::Database]);
        self.wire.vpc.party(host)
    }

    /// A host that the internet can see, of those that serve the public.
    pub fn front(&mut self) -> Party {
        let host = self.host(&[Role::LoadBalancer, Role::Gateway]);
        self.wire.vpc.party(host)
    }

    /// An address on the internet.
    pub fn outside(&mut self) -> Party {
        Party::outside(Address::v4(public_v4(self.random.bits())))
    }

    /// A time for something that lasts `seconds`: anywhere it fits, else soon after the beginning.
    pub fn moment(&mut self, seconds: f64) -> u32 {
        let whole = f64::from(self.wire.seconds());
        let (early, late) = (whole * 0.04, (whole - seconds * 1.05).max(whole * 0.12));
        self.random.between(early, late) as u32
    }

    /// States a row of the truth; an attack that goes out by a NAT gateway or a proxy has it as an accessory.
    pub fn state(
        &mut self,
        threat: &str,
        method: &str,
        actor: Party,
        target: Option<Party>,
        port: Option<u16>,
        basis: String,
    ) -> u16 {
        let mut accessories = Vec::new();
        if actor.is_ours() {
            let out = target.map_or(Address::v4(1), |t| t.address);
            if target.is_none_or(|t| !t.is_ours()) {
                accessories.extend(
                    self.wire.vpc.nat_between(actor.host, out).map(|nat| self.wire.vpc.party(nat).address.to_string()),
                );
            }
        }
        self.wire.state(Truth {
            threat: threat.to_owned(),
            actor: actor.address.to_string(),
            target: target.map_or("*".to_owned(), |t| t.address.to_string()),
            dstport: port,
            method: method.to_owned(),
            basis,
            accessories,
            ..Truth::default()
        })
    }
}

/// Sets the stage for every campaign.
pub fn plan(wire: &mut Wire, seed: u64, jobs: f64, campaigns: &Campaigns) -> Vec<Starting> {
    let mut taken = Vec::new();
    let mut starting = Vec::new();
    for (number, campaign) in campaigns.0.iter().enumerate() {
        let purpose = format!("{}.{}", campaign.threat, campaign.variant);
        let random = Random::new(seed, &purpose, number as u64);
        let intensity = campaign.intensity;
        let mut stage = Stage { wire, random, intensity, seed, jobs, taken: &mut taken, starting: Vec::new() };
        match campaign.threat {
            "port_scan" => port_scan::plan(&mut stage, campaign.variant),
            "ddos" => ddos::plan(&mut stage, campaign.variant),
            "c2_beacon" => beacon::plan(&mut stage, campaign.variant),
            "crypto_mining" => mining::plan(&mut stage, campaign.variant),
            "behavior" => behavior::plan(&mut stage, campaign.variant),
            "brute_force" => brute_force::plan(&mut stage, campaign.variant),
            "exfiltration" => exfiltration::plan(&mut stage, campaign.variant),
            _ => tor::plan(&mut stage, campaign.variant),
        }
        starting.append(&mut stage.starting);
    }
    starting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threats_are_chosen_by_name_variant_and_intensity() {
        let chosen: Campaigns = "tor:low, ddos.icmp:high".parse().unwrap();
        assert_eq!(chosen.0.len(), 5);
        assert!(chosen.0[..4].iter().all(|c| c.threat == "tor" && c.intensity == Intensity::Low));
        assert_eq!(chosen.0[4], Campaign { threat: "ddos", variant: "icmp", intensity: Intensity::High });
        assert_eq!("all".parse::<Campaigns>().unwrap().0.len(), VARIANTS.len() - 9);
        assert_eq!("exfiltration".parse::<Campaigns>().unwrap().0.len(), 3);
        assert_eq!("none".parse::<Campaigns>().unwrap(), Campaigns::default());
        assert!(matches!("tor.x".parse::<Campaigns>(), Err(CampaignError::Unknown(..))));
        assert!(matches!("tor:very".parse::<Campaigns>(), Err(CampaignError::Intensity(..))));
    }
}
