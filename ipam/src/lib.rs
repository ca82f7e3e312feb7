//! Deterministic, sticky, dual-stack allocation. Pure: what pools, claims and held addresses there are comes
//! in; assignments and reasons go out.
