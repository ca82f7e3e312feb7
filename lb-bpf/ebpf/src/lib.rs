//! Fairlead's XDP programs.
#![no_std]
#![expect(non_upper_case_globals, reason = "the name of a map's static is the name of the map")]

pub mod maps;
