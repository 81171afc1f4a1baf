//! `agarun`: runs a program under the interposer, against the assigner that is there.
//!
//! Owns the order of things: read the environment, look at the program, find the assigner, set the
//! environment, run, and write the history. The program runs as a child and not in `agarun`'s
//! place, for three reasons: the history needs the end, Ctrl-C must give 130 to callers that know
//! no signals, and the terminal stays `agarun`'s business. Signals are passed on, and the child
//! dies with `agarun`.
//!
//! | file | is |
//! | --- | --- |
//! | `cli.rs` | the command line |
//! | `request.rs` | what the environment asks for |
//! | `program.rs` | whether the interposer gets into the program |
//! | `contact.rs` | the assigner |
//! | `environment.rs` | the program's environment |
//! | `child.rs` | running it |
//! | `history.rs` | `job-history.log` |

pub mod child;
pub mod cli;
pub mod contact;
pub mod environment;
pub mod history;
pub mod program;
pub mod request;

use std::path::PathBuf;
use std::time::SystemTime;

use cli::Cli;
use contact::Contact;
use environment::Plan;
use history::Run;
use program::Program;
use request::{Device, Request};

/// Why a program was not run. The text follows `Error: `.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A bad value in the environment.
    #[error(transparent)]
    Request(#[from] request::RequestError),
    /// No program.
    #[error("no program given; usage: agarun [OPTIONS] [--] PROGRAM [ARGUMENTS]")]
    NoProgram,
    /// A program that cannot be run.
    #[error(transparent)]
    Program(#[from] program::ProgramError),
    /// No assigner.
    #[error(transparent)]
    Contact(#[from] contact::ContactError),
    /// No interposer.
    #[error(
        "the interposer {} is not there; set ACB_LIB_DIR to the folder that holds libcuda.so.1 of slurm-acb",
        path.display()
    )]
    NoInterposer {
        /// Where it should be.
        path: PathBuf,
    },
    /// More GPUs than there are.
    #[error("{wanted} GPUs wanted, but the assigner hands out {there}; lower --gpus")]
    TooManyGpus {
        /// What is wanted.
        wanted: u32,
        /// What there is.
        there: usize,
    },
    /// The system refuses.
    #[error("the program cannot be run: {0}")]
    System(#[from] std::io::Error),
}

/// Runs a program and returns its exit code.
pub fn run(cli: &Cli) -> Result<i32, LaunchError> {
    let request = Request::read(cli)?;
    let (name, arguments) = cli.command.split_first().ok_or(LaunchError::NoProgram)?;
    let program = Program::find(name)?;
    if let Some(folder) = &cli.checkpoints_topdir {
        eprintln!(
            "Note: --checkpoints-topdir {} has no effect: GPU memory is kept on the GPU or in host memory, not in files",
            folder.display()
        );
    }
    let is_interposed = request.is_auto && request.device != Device::Cpu && !cli.without_aga;
    if is_interposed {
        program.check_interposable()?;
    }
    let contact = match cli.without_aga || request.device == Device::Cpu {
        true => None,
        false => Some(Contact::find(&request)?),
    };
    let plan = plan(&request, cli, contact.as_ref())?;
    let mut history = Run::begin(name, &request, plan.mode(), contact.as_ref());
    if let Some(choice) = environment::replaced_choice(&plan) {
        eprintln!(
            "Note: CUDA_VISIBLE_DEVICES={} has no effect: the assigner chooses the GPUs. Choose them for it (gpu_assigner start \
             --gpu-list), and their number with agarun --gpus; AGA_REQUEST_DEVICE=cpu hides them all",
            choice.to_string_lossy()
        );
    }
    let changes = environment::changes(&plan, &request);
    let started = SystemTime::now();
    let code = child::run(&program, name, arguments, &changes)?;
    history.end(started, code, contact.as_ref());
    if let Some(path) = request.history_path(cli)
        && let Err(error) = history.append(&path)
    {
        eprintln!("Warning: the history {} cannot be written: {error}", path.display());
    }
    Ok(code)
}

fn plan(request: &Request, cli: &Cli, contact: Option<&Contact>) -> Result<Plan, LaunchError> {
    if cli.without_aga {
        return Ok(Plan::Without);
    }
    let Some(contact) = contact.filter(|contact| !contact.gpus.is_empty()) else {
        return Ok(Plan::Cpu);
    };
    if !request.is_auto {
        return Ok(Plan::Manual { tools: contact.tools.clone() });
    }
    let there = contact.gpus.len();
    if request.gpus as usize > there {
        return Err(LaunchError::TooManyGpus { wanted: request.gpus, there });
    }
    let folder = environment::interposer_folder();
    let path = folder.join(environment::INTERPOSER);
    let audit = cli.audit.then(|| folder.join(environment::AUDIT));
    for path in [Some(path), audit].into_iter().flatten() {
        if !path.is_file() {
            return Err(LaunchError::NoInterposer { path });
        }
    }
    Ok(Plan::Interposed {
        folder,
        client_socket: contact.client_socket.clone(),
        is_audited: cli.audit,
        uuids: contact.gpus[..request.gpus as usize].join(","),
    })
}
