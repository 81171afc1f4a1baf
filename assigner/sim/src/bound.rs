//! What could be achieved at best, to compare what was achieved with.
//!
//! Owns: the bound of scheduling and the exact value for exponential phases. Does not own: measuring.
//!
//! The bound: N clients that alternate c seconds of CPU and g seconds of GPU on G GPUs complete at most
//! `min(N/(c+g), G/(g+s))` rounds a second, where s is what a GPU loses at least between two phases: the copy of what cannot be
//! there before the holder before it has gone. Who keeps a GPU through its CPU phase loses c instead; so s is c at most. Random phases cannot reach it: now and then nobody wants a GPU. For exponential
//! phases the number k of clients that want a GPU is a birth-death process (M/M/G//N, the machine-repair model; Kleinrock,
//! *Queueing Systems* I, 1975, sections 3.8 and 3.9), with weights
//!
//! ```text
//! p(k) ~ C(N,k) r^k                      k <= G        r = g/c
//!        N!/((N-k)! G! G^(k-G)) r^k      k >  G
//! ```
//!
//! and the GPUs that are busy on average are Σ min(k,G) p(k), in any order of service that never idles a GPU. For one GPU
//! that is 1 − 1/Σ N!/(N−k)! (g/c)^k.

/// A client as far as bounds know it: a source of load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Source {
    /// Mean of its CPU phases, seconds.
    pub cpu_s: f64,
    /// Mean of its GPU phases, seconds.
    pub gpu_s: f64,
    /// GPUs that each of them takes.
    pub gpus: u32,
    /// What a GPU loses at least before each of them, seconds.
    pub switch_s: f64,
}

impl Source {
    /// The part of a GPU's time that computes while it serves nobody else.
    fn useful(self) -> f64 {
        self.gpu_s / (self.gpu_s + self.switch_s.min(self.cpu_s))
    }
}

/// Most GPUs that these sources keep busy on average. Who loses the least between its phases goes first: no other mix keeps
/// them busier.
#[must_use]
pub fn most_busy(sources: impl Iterator<Item = Source>, gpus: u32) -> f64 {
    let mut sources: Vec<Source> = sources.filter(|source| source.gpu_s > 0.0).collect();
    sources.sort_by(|a, b| b.useful().total_cmp(&a.useful()));
    let (mut left, mut busy) = (f64::from(gpus), 0.0);
    for source in sources {
        let wanted = f64::from(source.gpus) * source.gpu_s / (source.cpu_s + source.gpu_s);
        let taken = (wanted / source.useful()).min(left);
        left -= taken;
        busy += taken * source.useful();
    }
    busy
}

/// Seconds that a GPU loses at least before a phase of a client with `bytes` there, if the one before it was another's, with no
/// less than `others` bytes: as much as does not fit beside these comes when they are not needed any more.
#[must_use]
pub fn exposed_s(bytes: u64, others: u64, memory: u64, bytes_per_s: f64) -> f64 {
    (bytes + others).saturating_sub(memory).min(bytes) as f64 / bytes_per_s
}

/// GPUs that `clients` alike with exponential phases keep busy on average, in any order of service that never leaves a GPU
/// idle while one is wanted; each takes one GPU.
#[must_use]
pub fn exponential_busy(clients: u32, cpu_s: f64, gpu_s: f64, gpus: u32) -> f64 {
    let (n, g, ratio) = (f64::from(clients), f64::from(gpus), gpu_s / cpu_s);
    let (mut weight, mut total, mut busy) = (1.0, 1.0, 0.0);
    for k in 1..=clients {
        let k = f64::from(k);
        weight *= ratio * (n - k + 1.0) / k.min(g);
        total += weight;
        busy += weight * k.min(g);
        if weight > 1e200 {
            (weight, total, busy) = (weight / 1e200, total / 1e200, busy / 1e200);
        }
    }
    busy / total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_values_of_b1() {
        // 95.8 % of the bound in its first form (bound: GPU always busy), 82.1 % in its second (8/(c+g) = 1/g).
        assert!((exponential_busy(8, 487.5, 112.5, 1) - 0.958).abs() < 5e-4);
        assert!((exponential_busy(8, 525.0, 75.0, 1) - 0.821).abs() < 5e-4);
    }

    #[test]
    fn enough_gpus_leave_nobody_waiting() {
        let source = Source { cpu_s: 3.0, gpu_s: 1.0, gpus: 1, switch_s: 0.0 };
        let free = most_busy(std::iter::repeat_n(source, 8), 100);
        assert!((exponential_busy(8, 3.0, 1.0, 8) - free).abs() < 1e-9);
        assert_eq!(most_busy(std::iter::repeat_n(source, 8), 1), 1.0);
    }

    #[test]
    fn what_does_not_fit_beside_others_costs_its_copy() {
        const GIB: u64 = 1 << 30;
        let seconds = |bytes, others| exposed_s(bytes * GIB, others * GIB, 16 * GIB, GIB as f64);
        assert_eq!((seconds(10, 10), seconds(8, 8), seconds(16, 16)), (4.0, 0.0, 16.0));
        let source = |cpu_s, switch_s| Source { cpu_s, gpu_s: 1.0, gpus: 1, switch_s };
        let all = |source| most_busy(std::iter::repeat_n(source, 8), 1);
        assert_eq!(all(source(3.0, 1.0)), 0.5);
        // Who waits less long for its next phase than for its memory had better keep the GPU.
        assert_eq!(all(source(0.25, 1.0)), 0.8);
        // Few of them are bounded by themselves.
        assert_eq!(most_busy([source(3.0, 0.5)].into_iter(), 1), 0.25);
        // One that needs no copies goes first: it takes a half, and of the other half others compute a half.
        let mix = [source(7.0, 1.0), source(1.0, 0.0), source(7.0, 1.0), source(7.0, 1.0)];
        assert_eq!(most_busy(mix.into_iter(), 1), 0.75);
        assert_eq!(most_busy(mix.into_iter().take(2), 1), 0.625);
    }

    #[test]
    fn many_clients_overflow_nothing() {
        let busy = exponential_busy(50_000, 1.0, 10.0, 8);
        assert!((busy - 8.0).abs() < 1e-6, "{busy}");
    }
}
