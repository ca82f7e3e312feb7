//! The transition table, timers, and random histories.
use super::*;
use proptest::prelude::*;

const NOW: Time = Time::from_secs(1000);

fn timers() -> Timers {
    Timers { hold_seconds: 90, keepalive_seconds: 30, connect_retry_seconds: 5 }
}

fn session() -> SessionTimers {
    SessionTimers { hold_seconds: 90, keepalive_seconds: 30 }
}

fn cease() -> Notification {
    Reason::ADMINISTRATIVE_SHUTDOWN.into()
}

/// A machine in a state, a second before `NOW`.
fn machine(dialer: bool, state: State, random: &mut Random) -> Fsm {
    let then = NOW - Duration::from_secs(1);
    let mut fsm = Fsm::dialer(timers(), then);
    if !dialer {
        fsm = Fsm::accepted(timers(), then);
    }
    let up = [Event::Start, Event::TcpConnected, Event::Open(Ok(session())), Event::Keepalive];
    let path = match state {
        State::Idle => {
            fsm.end(then);
            vec![]
        }
        State::Active if dialer => vec![Event::StartPassive],
        State::Active => vec![],
        State::Connect => up[..1].to_vec(),
        State::OpenSent => up[..2].to_vec(),
        State::OpenConfirm => up[..3].to_vec(),
        State::Established => up.to_vec(),
    };
    for event in path {
        fsm.handle(event, then, random);
    }
    fsm
}

fn words(actions: &[Action]) -> String {
    let word = |action: &Action| match action {
        Action::Connect => "connect".to_owned(),
        Action::SendOpen => "open".to_owned(),
        Action::SendKeepalive => "keepalive".to_owned(),
        Action::SendNotification(Notification { reason, .. }) => {
            format!("notify {}/{}", reason.code, reason.subcode)
        }
        Action::Disconnect => "disconnect".to_owned(),
        Action::Up => "up".to_owned(),
        Action::Down(Down::Sent(_)) => "down(sent)".to_owned(),
        Action::Down(Down::Received(_)) => "down(received)".to_owned(),
        Action::Down(Down::Tcp(_)) => "down(tcp)".to_owned(),
    };
    actions.iter().map(word).collect::<Vec<_>>().join(", ")
}

fn event(name: &str) -> Event {
    match name {
        "Start" => Event::Start,
        "StartPassive" => Event::StartPassive,
        "Stop" => Event::Stop(cease()),
        "TcpConnected" => Event::TcpConnected,
        "TcpFailed" => Event::TcpFailed("reset".to_owned()),
        "Open" => Event::Open(Ok(session())),
        "BadOpen" => Event::Open(Err(Reason::BAD_PEER_AS.into())),
        "Keepalive" => Event::Keepalive,
        "Routes" => Event::Routes,
        "Notification" => Event::Notification(cease()),
        "Error" => Event::Error(Reason::BAD_MESSAGE_TYPE.into()),
        "Tick" => Event::Tick,
        other => panic!("no event {other}"),
    }
}

/// State, event, new state of the dialer, actions. The accepted machine differs only where the dialer waits
/// (Active) after an end: it is Idle.
const TABLE: &str = "
Idle        Start        Connect     connect
Idle        StartPassive Active
Idle        Stop         Idle
Idle        TcpConnected Idle
Idle        TcpFailed    Idle
Idle        Open         Idle
Idle        BadOpen      Idle
Idle        Keepalive    Idle
Idle        Routes       Idle
Idle        Notification Idle
Idle        Error        Idle
Idle        Tick         Idle
Connect     Start        Connect
Connect     StartPassive Connect
Connect     Stop         Idle        disconnect
Connect     TcpConnected OpenSent    open
Connect     TcpFailed    Active      disconnect, down(tcp)
Connect     Open         Connect
Connect     BadOpen      Connect
Connect     Keepalive    Connect
Connect     Routes       Connect
Connect     Notification Connect
Connect     Error        Connect
Connect     Tick         Connect
Active      Start        Active
Active      StartPassive Active
Active      Stop         Idle        disconnect
Active      TcpConnected OpenSent    open
Active      TcpFailed    Active      disconnect, down(tcp)
Active      Open         Active
Active      BadOpen      Active
Active      Keepalive    Active
Active      Routes       Active
Active      Notification Active
Active      Error        Active
Active      Tick         Active
OpenSent    Start        OpenSent
OpenSent    StartPassive OpenSent
OpenSent    Stop         Idle        notify 6/2, down(sent)
OpenSent    TcpConnected OpenSent
OpenSent    TcpFailed    Active      disconnect, down(tcp)
OpenSent    Open         OpenConfirm keepalive
OpenSent    BadOpen      Active      notify 2/2, down(sent)
OpenSent    Keepalive    Active      notify 5/1, down(sent)
OpenSent    Routes       Active      notify 5/1, down(sent)
OpenSent    Notification Active      disconnect, down(received)
OpenSent    Error        Active      notify 1/3, down(sent)
OpenSent    Tick         OpenSent
OpenConfirm Start        OpenConfirm
OpenConfirm StartPassive OpenConfirm
OpenConfirm Stop         Idle        notify 6/2, down(sent)
OpenConfirm TcpConnected OpenConfirm
OpenConfirm TcpFailed    Active      disconnect, down(tcp)
OpenConfirm Open         Active      notify 5/2, down(sent)
OpenConfirm BadOpen      Active      notify 5/2, down(sent)
OpenConfirm Keepalive    Established up
OpenConfirm Routes       Active      notify 5/2, down(sent)
OpenConfirm Notification Active      disconnect, down(received)
OpenConfirm Error        Active      notify 1/3, down(sent)
OpenConfirm Tick         OpenConfirm
Established Start        Established
Established StartPassive Established
Established Stop         Idle        notify 6/2, down(sent)
Established TcpConnected Established
Established TcpFailed    Active      disconnect, down(tcp)
Established Open         Active      notify 5/3, down(sent)
Established BadOpen      Active      notify 5/3, down(sent)
Established Keepalive    Established
Established Routes       Established
Established Notification Active      disconnect, down(received)
Established Error        Active      notify 1/3, down(sent)
Established Tick         Established
";

#[test]
fn transition_table() {
    let mut random = Random::new(1);
    let rows: Vec<&str> = TABLE.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(rows.len(), 6 * 12, "every event in every state");
    for row in rows {
        let mut columns = row.split_whitespace();
        let (from, name, to) = (columns.next().unwrap(), columns.next().unwrap(), columns.next().unwrap());
        let actions = columns.collect::<Vec<_>>().join(" ");
        use State::*;
        let state = [Idle, Connect, Active, OpenSent, OpenConfirm, Established]
            .into_iter()
            .find(|state| format!("{state:?}") == from)
            .unwrap();
        for dialer in [true, false] {
            if !dialer && (state == Connect || state == Idle || name.starts_with("Start")) {
                continue;
            }
            let mut fsm = machine(dialer, state, &mut random);
            assert_eq!(fsm.state(), state);
            let done = fsm.handle(event(name), NOW, &mut random);
            // After an end only the dialer goes on.
            let ended = actions.contains("down");
            let to = if ended && !dialer { "Idle" } else { to };
            assert_eq!(
                (words(&done).as_str(), format!("{:?}", fsm.state()).as_str()),
                (actions.as_str(), to),
                "{row} (dialer: {dialer})"
            );
        }
    }
}

/// Runs the machine to its next deadline.
fn run(fsm: &mut Fsm, random: &mut Random) -> (Time, Vec<Action>) {
    let at = fsm.next_deadline().expect("a deadline");
    (at, fsm.handle(Event::Tick, at, random))
}

#[test]
fn hold_timer_of_each_state() {
    let mut random = Random::new(2);
    for (state, seconds) in [(State::OpenSent, 240), (State::OpenConfirm, 90), (State::Established, 90)] {
        let mut fsm = machine(true, state, &mut random);
        let expired = fsm.since() + Duration::from_secs(seconds);
        let (at, actions) = loop {
            let (at, actions) = run(&mut fsm, &mut random);
            if actions != [Action::SendKeepalive] {
                break (at, words(&actions));
            }
        };
        assert_eq!((at, actions.as_str()), (expired, "notify 4/0, down(sent)"), "{state:?}");
    }
}

#[test]
fn hold_time_zero_means_no_timers() {
    let mut random = Random::new(3);
    let mut fsm = machine(true, State::OpenSent, &mut random);
    let none = SessionTimers::negotiate(&timers(), 0);
    assert_eq!(none, SessionTimers { hold_seconds: 0, keepalive_seconds: 0 });
    fsm.handle(Event::Open(Ok(none)), NOW, &mut random);
    fsm.handle(Event::Keepalive, NOW, &mut random);
    assert_eq!((fsm.state(), fsm.next_deadline()), (State::Established, None));
}

#[test]
fn keepalives_are_a_third_of_the_hold_time_at_most() {
    for (hold, keepalive, peer, negotiated) in [
        (90, 30, 90, (90, 30)),
        (90, 30, 9, (9, 3)),
        (9, 3, 90, (9, 3)),
        (90, 5, 90, (90, 5)),
        (3, 1, 3, (3, 1)),
    ] {
        let ours = Timers { hold_seconds: hold, keepalive_seconds: keepalive, ..timers() };
        let session = SessionTimers::negotiate(&ours, peer);
        assert_eq!((session.hold_seconds, session.keepalive_seconds), negotiated);
    }
    let mut random = Random::new(4);
    let mut fsm = machine(true, State::Established, &mut random);
    let mut last = fsm.since();
    for _ in 0..100 {
        fsm.handle(Event::Keepalive, last, &mut random);
        let (at, actions) = run(&mut fsm, &mut random);
        assert_eq!(actions, [Action::SendKeepalive]);
        let interval = (at - last).as_secs_f64();
        assert!((22.5..=30.0).contains(&interval), "{interval}");
        last = at;
    }
}

#[test]
fn attempts_back_off() {
    let mut random = Random::new(5);
    let mut fsm = Fsm::dialer(timers(), NOW);
    assert_eq!(fsm.handle(Event::Start, NOW, &mut random), [Action::Connect]);
    let mut now = NOW;
    for factor in [1.0, 2.0, 4.0, 8.0, 8.0, 8.0] {
        fsm.handle(Event::TcpFailed("refused".to_owned()), now, &mut random);
        let (at, actions) = run(&mut fsm, &mut random);
        assert_eq!(actions, [Action::Connect]);
        let delay = (at - now).as_secs_f64();
        assert!((3.75 * factor..=5.0 * factor).contains(&delay), "{factor}: {delay}");
        now = at;
    }
    // Nobody answers: the next attempt is made, the one before is given up.
    let (_, actions) = run(&mut fsm, &mut random);
    let silence = Action::Down(Down::Tcp("no answer".to_owned()));
    assert_eq!(actions, [Action::Disconnect, silence, Action::Connect]);
}

#[test]
fn a_short_session_counts_as_a_failure_and_a_long_one_forgives() {
    let mut random = Random::new(6);
    let mut fsm = machine(true, State::Established, &mut random);
    fsm.handle(Event::Notification(cease()), NOW, &mut random);
    assert_eq!(fsm.failures(), 1);
    for event in [Event::TcpConnected, Event::Open(Ok(session())), Event::Keepalive] {
        fsm.handle(event, NOW, &mut random);
    }
    fsm.handle(Event::Notification(cease()), NOW + STABLE_AFTER / 2, &mut random);
    assert_eq!(fsm.failures(), 2);
    for event in [Event::TcpConnected, Event::Open(Ok(session())), Event::Keepalive] {
        fsm.handle(event, NOW, &mut random);
    }
    fsm.handle(Event::Notification(cease()), NOW + STABLE_AFTER, &mut random);
    assert_eq!(fsm.failures(), 1);
}

fn any_event() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "Start",
        "StartPassive",
        "Stop",
        "TcpConnected",
        "TcpFailed",
        "Open",
        "BadOpen",
        "Keepalive",
        "Routes",
        "Notification",
        "Error",
        "Tick",
        "Tick",
    ])
}

proptest! {
    #[test]
    fn random_histories(
        dialer: bool,
        seed: u64,
        steps in prop::collection::vec((any_event(), 0u64..20_000), 1..200),
    ) {
        let mut random = Random::new(seed);
        let mut now = NOW;
        let mut fsm = if dialer { Fsm::dialer(timers(), now) } else { Fsm::accepted(timers(), now) };
        // What a session needs: OPEN and KEEPALIVE, sent and received.
        let (mut sent, mut got) = (0, 0);
        for (name, millis) in steps {
            now += Duration::from_millis(millis);
            let before = fsm.state();
            let due = fsm.next_deadline();
            let actions = fsm.handle(event(name), now, &mut random);
            for action in &actions {
                match action {
                    Action::SendOpen => (sent, got) = (1, 0),
                    Action::SendKeepalive if sent == 1 => sent = 2,
                    _ => {}
                }
            }
            match (name, before) {
                ("Open", State::OpenSent) => got = 1,
                ("Keepalive", State::OpenConfirm) if got == 1 => got = 2,
                _ => {}
            }
            if fsm.state() == State::Established {
                prop_assert_eq!((sent, got), (2, 2));
            }
            if name == "Tick" {
                prop_assert!(fsm.next_deadline().is_none_or(|at| at > now));
                if let Some(due) = due && due > now {
                    prop_assert!(actions.is_empty(), "early: {:?}", actions);
                }
            }
            let waits = fsm.state() != State::Idle && (dialer || fsm.state() != State::Active);
            prop_assert_eq!(fsm.next_deadline().is_some(), waits, "{:?}", fsm.state());
            prop_assert_eq!(fsm.session().is_some(), fsm.state() >= State::OpenConfirm);
        }
    }
}
