//! The BFD control packet (RFC 5880 section 4.1), and what of section 6.8.6 can be judged by looking at it alone.
use std::fmt;

/// Octets of a control packet without authentication.
pub const LENGTH: usize = 24;
/// The least length of one with authentication.
const AUTHENTICATED_LENGTH: u8 = 26;
const VERSION: u8 = 1;

/// State of a session (section 6.2); the value is that of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the RFC's")]
pub enum State {
    AdminDown = 0,
    Down = 1,
    Init = 2,
    Up = 3,
}

/// Why a session changed its state last (section 4.1), 0 to 31.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Diagnostic(pub u8);

impl Diagnostic {
    /// No reason.
    pub const NONE: Diagnostic = Diagnostic(0);
    /// Nothing was heard for the detection time.
    pub const DETECTION_TIME_EXPIRED: Diagnostic = Diagnostic(1);
    /// The other side said that it is down.
    pub const NEIGHBOR_SIGNALED_DOWN: Diagnostic = Diagnostic(3);
    /// Turned off by the operator.
    pub const ADMINISTRATIVELY_DOWN: Diagnostic = Diagnostic(7);
}

impl fmt::Display for Diagnostic {
    /// The words of section 4.1.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "No Diagnostic",
            1 => "Control Detection Time Expired",
            2 => "Echo Function Failed",
            3 => "Neighbor Signaled Session Down",
            4 => "Forwarding Plane Reset",
            5 => "Path Down",
            6 => "Concatenated Path Down",
            7 => "Administratively Down",
            8 => "Reverse Concatenated Path Down",
            other => return write!(f, "Diagnostic {other}"),
        })
    }
}

/// A control packet without authentication. Intervals are in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Why the sender's session changed its state last.
    pub diagnostic: Diagnostic,
    /// State of the sender's session.
    pub state: State,
    /// The sender wants an answer with `final`.
    pub poll: bool,
    /// The answer to a poll.
    pub r#final: bool,
    /// The sender's BFD does not share the fate of its control plane (C).
    pub control_plane_independent: bool,
    /// The sender wants no packets but answers (D).
    pub demand: bool,
    /// So many packets may be missed; at least 1.
    pub multiplier: u8,
    /// The sender's discriminator; not 0.
    pub my_discriminator: u32,
    /// The receiver's one, as the sender knows it; 0: it does not.
    pub your_discriminator: u32,
    /// The sender sends no faster.
    pub desired_min_tx: u32,
    /// The sender can receive no faster; 0: it wants no periodic packets.
    pub required_min_rx: u32,
    /// The same for echo packets; 0: it does not return them.
    pub required_min_echo_rx: u32,
}

/// Why a packet is discarded (section 6.8.6, RFC 5881 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Discard {
    /// A hop limit of less than 255 on a single hop: it came through a router.
    #[error("came from further away than the link")]
    HopLimit,
    /// Not version 1.
    #[error("unknown version")]
    Version,
    /// Shorter than a packet, or longer than what came.
    #[error("bad length")]
    Length,
    /// A multiplier of 0.
    #[error("multiplier is 0")]
    Multiplier,
    /// The bit for point-to-multipoint sessions.
    #[error("multipoint bit is set")]
    Multipoint,
    /// The sender has no discriminator.
    #[error("my discriminator is 0")]
    MyDiscriminator,
    /// Our discriminator is missing in a packet of a session that must know it.
    #[error("your discriminator is 0 in state Init or Up")]
    YourDiscriminator,
    /// Authentication, which is not supported.
    #[error("is authenticated, which is not supported")]
    Authentication,
    /// No session has this discriminator, or these ends.
    #[error("belongs to no session")]
    UnknownSession,
}

impl Packet {
    /// Parses a datagram; what is behind the packet is ignored.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(datagram: &[u8]) -> Result<Packet, Discard> {
        let fixed: &[u8; LENGTH] = datagram.first_chunk().ok_or(Discard::Length)?;
        let [first, second, multiplier, length, words @ ..] = *fixed;
        let flag = |bit: u8| second & bit != 0;
        if first >> 5 != VERSION {
            return Err(Discard::Version);
        }
        let authenticated = flag(0x04);
        let least = if authenticated { AUTHENTICATED_LENGTH } else { LENGTH as u8 };
        if length < least || usize::from(length) > datagram.len() {
            return Err(Discard::Length);
        }
        let word = |at: usize| {
            let at = 4 * at;
            u32::from_be_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]])
        };
        let packet = Packet {
            diagnostic: Diagnostic(first & 0x1f),
            state: match second >> 6 {
                0 => State::AdminDown,
                1 => State::Down,
                2 => State::Init,
                _ => State::Up,
            },
            poll: flag(0x20),
            r#final: flag(0x10),
            control_plane_independent: flag(0x08),
            demand: flag(0x02),
            multiplier,
            my_discriminator: word(0),
            your_discriminator: word(1),
            desired_min_tx: word(2),
            required_min_rx: word(3),
            required_min_echo_rx: word(4),
        };
        if multiplier == 0 {
            return Err(Discard::Multiplier);
        }
        if flag(0x01) {
            return Err(Discard::Multipoint);
        }
        if packet.my_discriminator == 0 {
            return Err(Discard::MyDiscriminator);
        }
        if packet.your_discriminator == 0 && packet.state >= State::Init {
            return Err(Discard::YourDiscriminator);
        }
        if authenticated {
            return Err(Discard::Authentication);
        }
        Ok(packet)
    }

    /// The packet as it is sent.
    pub fn encode(&self) -> [u8; LENGTH] {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let mut bytes = [0; LENGTH];
        bytes[0] = VERSION << 5 | self.diagnostic.0 & 0x1f;
        bytes[1] = (self.state as u8) << 6
            | flag(self.poll, 0x20)
            | flag(self.r#final, 0x10)
            | flag(self.control_plane_independent, 0x08)
            | flag(self.demand, 0x02);
        bytes[2] = self.multiplier;
        bytes[3] = LENGTH as u8;
        let words = [
            self.my_discriminator,
            self.your_discriminator,
            self.desired_min_tx,
            self.required_min_rx,
            self.required_min_echo_rx,
        ];
        for (place, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PACKET: Packet = Packet {
        diagnostic: Diagnostic::NEIGHBOR_SIGNALED_DOWN,
        state: State::Up,
        poll: true,
        r#final: false,
        control_plane_independent: false,
        demand: false,
        multiplier: 3,
        my_discriminator: 0x0102_0304,
        your_discriminator: 0x0506_0708,
        desired_min_tx: 50_000,
        required_min_rx: 300_000,
        required_min_echo_rx: 0,
    };

    #[test]
    fn every_rule_of_section_6_8_6() {
        type Case = (fn(&mut Vec<u8>), Result<(), Discard>);
        let cases: [Case; 15] = [
            (|_| (), Ok(())),
            (|bytes| bytes.extend([0; 9]), Ok(())),
            (|bytes| bytes[0] = 0x03, Err(Discard::Version)),
            (|bytes| bytes[0] = 0x43, Err(Discard::Version)),
            (|bytes| bytes[3] = 23, Err(Discard::Length)),
            (|bytes| bytes[3] = 25, Err(Discard::Length)),
            (|bytes| bytes.truncate(23), Err(Discard::Length)),
            (Vec::clear, Err(Discard::Length)),
            (|bytes| bytes[2] = 0, Err(Discard::Multiplier)),
            (|bytes| bytes[1] |= 0x01, Err(Discard::Multipoint)),
            (|bytes| bytes[4..8].fill(0), Err(Discard::MyDiscriminator)),
            (|bytes| bytes.splice(8..12, [0; 4]).for_each(drop), Err(Discard::YourDiscriminator)),
            // The same in state Down.
            (|bytes| bytes.splice(1..12, [0x40, 3, 24, 1, 1, 1, 1, 0, 0, 0, 0]).for_each(drop), Ok(())),
            // The A bit, without and with room for a section.
            (|bytes| bytes[1] |= 0x04, Err(Discard::Length)),
            (
                |bytes| {
                    (bytes[1], bytes[3]) = (0xc4, 26);
                    bytes.extend([1, 2]);
                },
                Err(Discard::Authentication),
            ),
        ];
        for (at, (change, result)) in cases.into_iter().enumerate() {
            let mut bytes = PACKET.encode().to_vec();
            change(&mut bytes);
            assert_eq!(Packet::parse(&bytes).map(drop), result, "case {at}");
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_parsed(
            diagnostic in 0..32_u8, state in 0..4_u8, flags in 0..16_u8, multiplier in 1_u8..,
            mine in 1_u32.., yours in 1_u32.., tx: u32, rx: u32, echo: u32,
        ) {
            let packet = Packet {
                diagnostic: Diagnostic(diagnostic),
                state: [State::AdminDown, State::Down, State::Init, State::Up][usize::from(state)],
                poll: flags & 1 != 0,
                r#final: flags & 2 != 0,
                control_plane_independent: flags & 4 != 0,
                demand: flags & 8 != 0,
                multiplier,
                my_discriminator: mine,
                your_discriminator: yours,
                desired_min_tx: tx,
                required_min_rx: rx,
                required_min_echo_rx: echo,
            };
            prop_assert_eq!(Packet::parse(&packet.encode()), Ok(packet));
        }

        #[test]
        fn any_octets_are_judged(bytes: Vec<u8>) {
            if let Ok(packet) = Packet::parse(&bytes) {
                prop_assert_eq!(&packet.encode()[..], &bytes[..LENGTH].iter().enumerate()
                    .map(|(at, octet)| if at == 3 { LENGTH as u8 } else { *octet }).collect::<Vec<_>>()[..]);
            }
        }
    }
}
