//! The lab: real kernels, real routers, real connections. Needs root, FRR, BIRD, tshark (`tests/run.sh` installs
//! them). Every test builds its own network and removes it, one at a time.
mod addresses;
mod anycast;
mod backends;
mod chaos;
mod cluster;
mod clusterset;
mod connections;
mod delivery;
mod directory;
mod etcd;
mod filters;
mod flood;
mod handover;
mod icmp;
mod iperf;
mod outage;
mod peers;
mod pods;
mod privileges;
mod quic;
mod restart;
mod routers;
mod segment;
mod sites;
mod trace;
mod tunnel;
