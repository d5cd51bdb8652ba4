//! The simulated VPC: subnets of hosts with roles, their interfaces, and who outside they know.

use super::session::{Outcome, Party};
use crate::flow::{Address, Interface, InterfaceId};
use crate::random::{Random, mix};

/// What a host is for. It decides which services run on it and what it does all day.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Takes visitors from the internet and hands them to [`Role::Web`].
    LoadBalancer,
    /// Serves pages behind a load balancer.
    Web,
    /// Business logic behind the web hosts.
    App,
    /// Relational database.
    Database,
    /// In-memory cache.
    Cache,
    /// Runs containers of many kinds.
    Container,
    /// Runs build jobs.
    Runner,
    /// Night jobs and backups.
    Batch,
    /// The way in for administrators.
    Bastion,
    /// NAT gateway of the private subnets.
    Nat,
    /// Our own DNS resolver.
    Resolver,
    /// Forward HTTP proxy that some hosts must use.
    Proxy,
    /// Scrapes metrics.
    Monitor,
    /// Keeps sessions of devices and browsers open (MQTT, WebSocket).
    Gateway,
    /// An interface without traffic.
    Spare,
}

impl Role {
    /// TCP ports on which the role answers.
    pub const fn services(self) -> &'static [u16] {
        match self {
            Role::LoadBalancer => &[80, 443],
            Role::Web => &[22, 80, 8080, 9100],
            Role::App => &[22, 8080, 8443, 9100],
            Role::Database => &[22, 5432, 9100, 9187],
            Role::Cache => &[22, 6379, 9100],
            Role::Container => &[22, 8080, 9090, 9100, 10250],
            Role::Runner | Role::Batch => &[22, 9100],
            Role::Bastion => &[22],
            Role::Resolver => &[22, 53, 9100],
            Role::Proxy => &[22, 3128, 9100],
            Role::Monitor => &[22, 3000, 9090],
            Role::Gateway => &[443, 8883, 9100],
            Role::Nat | Role::Spare => &[],
        }
    }

    const fn is_public(self) -> bool {
        matches!(self, Role::LoadBalancer | Role::Bastion | Role::Nat | Role::Gateway)
    }

    /// Which /20 of the VPC the role lives in.
    const fn subnet(self) -> u32 {
        match self {
            Role::LoadBalancer | Role::Bastion | Role::Nat | Role::Gateway => 0,
            Role::Web => 1,
            Role::App | Role::Proxy => 2,
            Role::Database | Role::Cache => 3,
            Role::Container => 4,
            Role::Runner | Role::Batch => 5,
            Role::Resolver | Role::Monitor | Role::Spare => 6,
        }
    }
}

/// One host with one interface.
#[derive(Clone, Debug)]
pub struct Host {
    /// What it is for.
    pub role: Role,
    /// Its private IPv4 address.
    pub address: Address,
    /// Its IPv6 address, where it has one.
    pub address_v6: Option<Address>,
    /// Whether it talks to the internet without the NAT gateway.
    pub is_public: bool,
    /// Its security group lets the whole VPC in, so that a closed port is refused and not rejected.
    pub is_lenient: bool,
    /// The seconds of the simulation in which it runs, half-open.
    pub up: (u32, u32),
    /// Where the aggregation windows of its interface begin, s in `0..60`.
    pub phase: u32,
}

/// All hosts, with indices by role.
#[derive(Clone, Debug)]
pub struct Vpc {
    /// The hosts; an [`InterfaceId`] is the index plus one.
    pub hosts: Vec<Host>,
    /// Their interfaces, in the same order.
    pub interfaces: Vec<Interface>,
    /// The block of all IPv4 addresses: network and prefix length.
    pub block: (u32, u8),
    /// The block of all IPv6 addresses (a /56, as AWS assigns them).
    pub block_v6: u128,
    /// The administrators' addresses, which alone may reach the bastion.
    pub administrators: Vec<Address>,
}

impl Vpc {
    /// With fewer hosts a role would be missing.
    pub const HOSTS_MIN: u32 = 32;

    /// Lays out `count` hosts for `seconds`. At least 32 hosts, so that every role exists.
    pub fn new(seed: u64, count: u32, seconds: u32, ipv6_share: f64) -> Vpc {
        let mut random = Random::new(seed, "vpc", 0);
        let second_octet = 16 * (1 + random.below(14) as u32);
        // A /16 has sixteen /20 subnets of which seven are used; more hosts take further /16s of a /12.
        let block = (0x0a00_0000 | second_octet << 16, if count <= 4_000 { 16 } else { 12 });
        let block_v6 = 0x2600_1f18_u128 << 96 | u128::from(random.bits() as u32 & 0xffff_ff00) << 64;
        let account = 100_000_000_000 + random.below(899_999_999_999);
        let roles = roles(count.max(Vpc::HOSTS_MIN));
        let mut vpc = Vpc {
            hosts: Vec::with_capacity(roles.len()),
            interfaces: Vec::with_capacity(roles.len()),
            block,
            block_v6,
            administrators: (0..4).map(|_| Address::v4(public_v4(random.bits()))).collect(),
        };
        let mut used = [0u32; 7];
        for (number, role) in roles.into_iter().enumerate() {
            let subnet = role.subnet();
            // Addresses are handed out with gaps, since hosts come and go.
            let slot = &mut used[subnet as usize];
            *slot += 1 + random.below(3) as u32;
            let within = *slot + 4;
            let bits = block.0 + ((within / 4_000) << 16) + (subnet << 12) + within % 4_000;
            let has_v6 = random.chance(ipv6_share * 4.0) || role == Role::LoadBalancer && ipv6_share > 0.0;
            let suffix = u128::from(random.bits());
            vpc.hosts.push(Host {
                role,
                address: Address::v4(bits),
                address_v6: has_v6.then(|| Address::from_bits(block_v6 | u128::from(subnet) << 64 | suffix)),
                is_public: role.is_public(),
                is_lenient: random.chance(0.3),
                up: lifetime(role, seconds, &mut random),
                phase: random.below(60) as u32,
            });
            vpc.interfaces.push(Interface {
                id: InterfaceId(number as u32 + 1),
                name: format!("eni-0{:016x}", mix(seed ^ (number as u64) << 20)),
                account: account.to_string(),
            });
        }
        vpc
    }

    /// A host as a party, by its IPv4 address.
    pub fn party(&self, host: u32) -> Party {
        Party { address: self.hosts[host as usize].address, host }
    }

    /// A host as a party by its IPv6 address, where it has one.
    pub fn party_v6(&self, host: u32) -> Option<Party> {
        self.hosts[host as usize].address_v6.map(|address| Party { address, host })
    }

    /// All hosts of some roles.
    pub fn with_role(&self, roles: &[Role]) -> Vec<u32> {
        (0..self.hosts.len() as u32).filter(|&h| roles.contains(&self.hosts[h as usize].role)).collect()
    }

    /// Whether a host runs at a second of the simulation.
    pub fn is_up(&self, host: u32, second: u32) -> bool {
        let (from, to) = self.hosts[host as usize].up;
        (from..to).contains(&second)
    }

    /// The NAT gateway through which a host reaches an address, if it needs one. S3 is reached by a gateway endpoint.
    pub fn nat_between(&self, host: u32, outside: Address) -> Option<u32> {
        let ours = &self.hosts[host as usize];
        if ours.is_public || outside.as_v4().is_none() || aws_service(outside) == Some("S3") {
            return None;
        }
        let gateways = self.hosts.iter().take(8).filter(|h| h.role == Role::Nat).count() as u32;
        // The gateways are the first hosts of the VPC: see `roles`.
        (gateways > 0).then(|| host % gateways)
    }

    /// What becomes of a TCP attempt of `from` on a port of one of our hosts.
    pub fn verdict(&self, from: Party, host: u32, port: u16) -> Outcome {
        let target = &self.hosts[host as usize];
        let serves = target.role.services().contains(&port);
        let from_outside_open = match target.role {
            Role::LoadBalancer => matches!(port, 80 | 443),
            Role::Gateway => matches!(port, 443 | 8883),
            Role::Bastion => port == 22 && self.administrators.contains(&from.address),
            _ => false,
        };
        if !from.is_ours() {
            return if from_outside_open { Outcome::Answered } else { Outcome::Rejected };
        }
        match (serves, target.is_lenient) {
            (true, true) => Outcome::Answered,
            // A strict group opens a service to those who need it; about half of the hosts do for any given service.
            (true, false) if mix(u64::from(from.host) << 16 | u64::from(port)).is_multiple_of(2) => Outcome::Answered,
            (false, true) => Outcome::Refused,
            _ => Outcome::Rejected,
        }
    }
}

/// The roles of `count` hosts, NAT gateways first.
fn roles(count: u32) -> Vec<Role> {
    let share = |part: f64| ((f64::from(count) * part) as usize).max(1);
    let gateways = if count > 100 { 2 } else { 1 };
    let fixed = [
        (Role::Nat, gateways),
        (Role::LoadBalancer, share(0.01).clamp(2, 8)),
        (Role::Resolver, 2),
        (Role::Bastion, 1),
        (Role::Proxy, 1),
        (Role::Monitor, share(0.002)),
        (Role::Gateway, share(0.02)),
        (Role::Database, share(0.06).max(2)),
        (Role::Cache, share(0.03)),
        (Role::Batch, share(0.06).max(2)),
        (Role::Runner, share(0.09).max(2)),
        (Role::Spare, share(0.02)),
        (Role::Web, share(0.2).max(3)),
        (Role::App, share(0.22).max(3)),
    ];
    let mut roles: Vec<Role> = fixed.iter().flat_map(|&(role, n)| std::iter::repeat_n(role, n)).collect();
    roles.resize(roles.len().max(count as usize), Role::Container);
    roles
}

/// Most hosts run throughout; containers and runners are started and stopped.
fn lifetime(role: Role, seconds: u32, random: &mut Random) -> (u32, u32) {
    let comes_and_goes = match role {
        Role::Runner => 0.4,
        Role::Container => 0.25,
        Role::App => 0.05,
        _ => 0.0,
    };
    if !random.chance(comes_and_goes) {
        return (0, seconds);
    }
    let from = random.between(0.0, 0.6) * f64::from(seconds);
    let to = from + random.between(0.2, 0.9) * f64::from(seconds);
    (if random.chance(0.5) { 0 } else { from as u32 }, (to as u32).min(seconds))
}

/// The AWS service that an address belongs to, as `pkt-dst-aws-service` would say, for the blocks that the simulation
/// gives to AWS (a few real ones of `ip-ranges.json`).
pub fn aws_service(address: Address) -> Option<&'static str> {
    let bits = address.as_v4()?;
    match (bits >> 24, bits >> 16 & 0xff) {
        (52, 216..=217) => Some("S3"),
        (52, 94) | (52, 46) | (52, 119) => Some("AMAZON"),
        _ => None,
    }
}

/// A public IPv4 address from random bits: none of the reserved blocks (RFC 6890), none of those given to AWS services.
pub fn public_v4(bits: u64) -> u32 {
    let mut draw = bits;
    loop {
        draw = mix(draw);
        let address = draw as u32;
        let (first, second) = (address >> 24, address >> 16 & 0xff);
        let reserved = matches!(first, 0 | 10 | 127 | 224..)
            || first == 100 && (64..128).contains(&second)
            || first == 169 && second == 254
            || first == 172 && (16..32).contains(&second)
            || first == 192 && matches!(second, 0 | 2 | 168)
            || first == 198 && matches!(second, 18 | 19 | 51)
            || first == 203 && second == 0;
        if !reserved && aws_service(Address::v4(address)).is_none() {
            return address;
        }
    }
}

/// A global IPv6 address from random bits, in blocks that providers use.
pub fn public_v6(bits: u64) -> Address {
    const BLOCKS: [u128; 5] = [0x2001_0db8, 0x2a00_1450, 0x2606_4700, 0x2a02_26f0, 0x2409_8a00];
    let block = BLOCKS[1 + (bits % 4) as usize];
    Address::from_bits(block << 96 | u128::from(mix(bits) as u16) << 64 | u128::from(mix(bits ^ 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unique_and_within_the_block() {
        for count in [32, 200, 9_000] {
            let vpc = Vpc::new(3, count, 3_600, 0.05);
            assert_eq!(vpc.hosts.len(), count as usize);
            let mut seen: Vec<u32> = vpc.hosts.iter().map(|h| h.address.as_v4().unwrap()).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), count as usize);
            assert!(seen.iter().all(|a| a >> (32 - vpc.block.1) == vpc.block.0 >> (32 - vpc.block.1)));
        }
    }

    #[test]
    fn every_role_exists_in_the_smallest_vpc() {
        let vpc = Vpc::new(1, 1, 60, 0.0);
        for role in [Role::Nat, Role::Web, Role::Database, Role::Runner, Role::Monitor, Role::Spare, Role::Container] {
            assert!(!vpc.with_role(&[role]).is_empty(), "{role:?} in {:?}", vpc.hosts.len());
        }
    }
}
