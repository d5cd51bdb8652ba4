//! What columns are called: AWS's own names, and those under which the same fields are met elsewhere.
//!
//! A flow log is asked about with Athena, CloudWatch Logs Insights, Splunk or Elasticsearch, and comes back with other
//! names: `sourceaddress`, `srcAddr`, `source.ip`, or in Security Lake `src_endpoint.ip`. Names are compared in lower case
//! and without `-`, `_`, blanks and `@`; dots stay, for they are the way into nested columns. Where several columns could
//! be the same field, the one that stands first in [`NAMES`] is.

use crate::flow::text::{FIELDS, Field};

/// What a column is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Column {
    /// A field of the record.
    Field(Field),
    /// A whole line of a flow log.
    Message,
    /// When the line was logged: the time of the record where there is no better one.
    Stamp,
}

use Column::{Message, Stamp};

const fn field(field: Field) -> Column {
    Column::Field(field)
}

/// Names beside AWS's own, best first. Of OCSF (Security Lake), ECS (Elastic), Athena, CloudWatch Logs, Splunk and Loki.
const NAMES: &[(&str, Column)] = &[
    ("sourceaddress", field(Field::Source)),
    ("srcendpoint.ip", field(Field::Source)),
    ("source.ip", field(Field::Source)),
    ("source.address", field(Field::Source)),
    ("sourceip", field(Field::Source)),
    ("srcip", field(Field::Source)),
    ("sourceipaddress", field(Field::Source)),
    ("srcipaddress", field(Field::Source)),
    ("destinationaddress", field(Field::Destination)),
    ("destaddr", field(Field::Destination)),
    ("dstendpoint.ip", field(Field::Destination)),
    ("destination.ip", field(Field::Destination)),
    ("destination.address", field(Field::Destination)),
    ("destinationip", field(Field::Destination)),
    ("dstip", field(Field::Destination)),
    ("destip", field(Field::Destination)),
    ("destinationipaddress", field(Field::Destination)),
    ("dstipaddress", field(Field::Destination)),
    ("sourceport", field(Field::SourcePort)),
    ("srcendpoint.port", field(Field::SourcePort)),
    ("source.port", field(Field::SourcePort)),
    ("destinationport", field(Field::DestinationPort)),
    ("destport", field(Field::DestinationPort)),
    ("dstendpoint.port", field(Field::DestinationPort)),
    ("destination.port", field(Field::DestinationPort)),
    ("protocolnum", field(Field::Protocol)),
    ("protocolnumber", field(Field::Protocol)),
    ("connectioninfo.protocolnum", field(Field::Protocol)),
    ("network.iananumber", field(Field::Protocol)),
    ("protocolcode", field(Field::Protocol)),
    ("proto", field(Field::Protocol)),
    ("network.transport", field(Field::Protocol)),
    ("numpackets", field(Field::Packets)),
    ("packetcount", field(Field::Packets)),
    ("traffic.packets", field(Field::Packets)),
    ("network.packets", field(Field::Packets)),
    ("source.packets", field(Field::Packets)),
    ("numbytes", field(Field::Bytes)),
    ("traffic.bytes", field(Field::Bytes)),
    ("network.bytes", field(Field::Bytes)),
    ("source.bytes", field(Field::Bytes)),
    ("starttime", field(Field::Start)),
    ("event.start", field(Field::Start)),
    ("starttimedt", field(Field::Start)),
    ("endtime", field(Field::End)),
    ("event.end", field(Field::End)),
    ("endtimedt", field(Field::End)),
    ("disposition", field(Field::Action)),
    ("dispositionid", field(Field::Action)),
    ("actionid", field(Field::Action)),
    ("logstatus", field(Field::Status)),
    ("statuscode", field(Field::Status)),
    ("connectioninfo.tcpflags", field(Field::Flags)),
    ("account", field(Field::Account)),
    ("cloud.account.uid", field(Field::Account)),
    ("cloud.accountuid", field(Field::Account)),
    ("cloud.account.id", field(Field::Account)),
    ("eni", field(Field::Interface)),
    ("srcendpoint.interfaceuid", field(Field::Interface)),
    ("dstendpoint.interfaceuid", field(Field::Interface)),
    ("direction", field(Field::Direction)),
    ("connectioninfo.direction", field(Field::Direction)),
    ("network.direction", field(Field::Direction)),
    ("srcendpoint.svcname", field(Field::PacketSourceService)),
    ("dstendpoint.svcname", field(Field::PacketDestinationService)),
    ("message", Message),
    ("event.original", Message),
    ("raw", Message),
    ("log", Message),
    ("line", Message),
    ("logline", Message),
    ("timestamp", Stamp),
    ("time", Stamp),
    ("eventtime", Stamp),
];

/// Behind these, nested names are AWS's own.
const PREFIXES: [&str; 4] = ["aws.vpcflow.", "netflow.", "vpcflow.", "fields."];

/// A name as [`NAMES`] has it.
fn squashed(name: &str) -> String {
    let kept = name.chars().filter(|c| !matches!(c, '-' | '_' | ' ' | '@' | '"' | '`' | '\u{feff}'));
    kept.map(|c| c.to_ascii_lowercase()).collect()
}

/// What a column of this name is, and how good the name is: 0 is AWS's own, and smaller is better.
pub(crate) fn known(name: &str) -> Option<(Column, usize)> {
    let name = squashed(name);
    let own = |name: &str| {
        let same = |field: &Field| {
            let known = field.name().bytes().filter(|byte| *byte != b'-');
            known.eq(name.bytes())
        };
        Field::ALL.into_iter().find(same).map(Column::Field)
    };
    if let Some(column) = own(&name) {
        return Some((column, 0));
    }
    if let Some(at) = NAMES.iter().position(|(known, _)| *known == name) {
        return Some((NAMES[at].1, at + 1));
    }
    let inner = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix))?;
    own(inner).map(|column| (column, NAMES.len()))
}

/// Whether a name is one of a flow log's, read or not.
pub(crate) fn is_name(name: &str) -> bool {
    let name = squashed(name);
    let same = |known: &str| known.bytes().filter(|byte| *byte != b'-').eq(name.bytes());
    FIELDS.iter().any(|known| same(known)) || matches!(known(&name), Some((Column::Field(_), _)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_field_is_known_under_all_its_names() {
        for (field, names) in [
            (
                Field::Source,
                &["srcaddr", "sourceAddress", "source_address", "src_ip", "src_endpoint.ip", "source.ip"][..],
            ),
            (Field::Start, &["start", "start_time", "starttime", "startTime", "event.start"]),
            (Field::Bytes, &["bytes", "numbytes", "num_bytes", "traffic.bytes", "aws.vpcflow.bytes"]),
            (Field::Status, &["log-status", "log_status", "logStatus", "status_code"]),
            (Field::PacketSource, &["pkt-srcaddr", "pkt_srcaddr", "pktSrcAddr"]),
        ] {
            for name in names {
                assert_eq!(known(name).map(|(column, _)| column), Some(Column::Field(field)), "{name}");
            }
        }
        assert_eq!(known("@message").map(|(column, _)| column), Some(Message));
        assert_eq!(known("metadata.version"), None);
        assert_eq!(known("team"), None);
    }
}
