//! Gangs: the real machines of nodes and controller, on GPUs and a network that the tests own.

mod causes;
mod graph;
mod model;
mod random;
mod world;
mod yard;
