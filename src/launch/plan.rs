//! Which programs are started here, and in which order.

use std::fmt;

use super::file::{After, Need, Program};

/// What is to be started here.
#[derive(Debug, PartialEq)]
pub(crate) struct Plan {
    /// Each after those that it waits for, else as in the file.
    pub(crate) steps: Vec<Step>,
    /// What is not, in the order of the file.
    pub(crate) skipped: Vec<Skipped>,
}

/// A program to be started.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) program: Program,
    /// Earlier steps, which it waits for.
    pub(crate) after: Vec<usize>,
    /// What else it waits for.
    pub(crate) needs: Vec<Need>,
    /// Those that it would wait for if they were started here.
    pub(crate) missing: Vec<String>,
}

/// A program that is not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub(crate) name: String,
    pub(crate) why: Why,
}

/// Why a program is not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Disabled,
    /// It runs on these hosts.
    OtherHost(Vec<String>),
    /// Whoever launches does not want it.
    NotChosen,
}

/// What whoever launches wants of a file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choice<'a> {
    /// Empty: all.
    pub(crate) only: &'a [String],
    pub(crate) except: &'a [String],
}

/// Why there is no order.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// Somebody names a program that the file does not have.
    #[error("{who} names program '{name}', which is not in the file")]
    Unknown { who: String, name: String, nearest: Option<String> },
    /// Programs wait for each other.
    #[error("programs wait for each other: {}", .0.join(" after "))]
    Cycle(Vec<String>),
}

impl Plan {
    /// The plan for the host of this name.
    pub(crate) fn new(programs: Vec<Program>, choice: &Choice<'_>, host: &str) -> Result<Self, PlanError> {
        let names: Vec<&str> = programs.iter().map(|program| program.name.as_str()).collect();
        let find = |who: &str, name: &str| {
            let found = names.iter().position(|known| *known == name);
            found.ok_or_else(|| PlanError::Unknown {
                who: who.to_owned(),
                name: name.to_owned(),
                nearest: nearest(name, &names),
            })
        };
        for (option, chosen) in [("--only", choice.only), ("--except", choice.except)] {
            chosen.iter().try_for_each(|name| find(option, name).map(drop))?;
        }
        let mut after = Vec::new(); // by places in the file
        for program in &programs {
            let who = format!("'after' of {}", program.name);
            let waits = program.after.iter().filter_map(|after| match after {
                After::Program(name) => Some(find(&who, name)),
                After::Need(_) => None,
            });
            after.push(waits.collect::<Result<Vec<usize>, _>>()?);
        }
        let order = order(&after)
            .map_err(|cycle| PlanError::Cycle(cycle.into_iter().map(|at| names[at].to_owned()).collect()))?;
        let why: Vec<Option<Why>> = programs.iter().map(|program| why_not(program, choice, host)).collect();
        let started: Vec<usize> = order.into_iter().filter(|at| why[*at].is_none()).collect();
        let step = |at: usize| {
            let program = programs[at].clone();
            let place = |wanted: &usize| started.iter().position(|at| at == wanted);
            let missing = after[at].iter().filter(|at| place(at).is_none()).map(|at| names[*at].to_owned()).collect();
            let needs = program.after.iter().filter_map(|after| match after {
                After::Program(_) => None,
                After::Need(need) => Some(need.clone()),
            });
            Step { after: after[at].iter().filter_map(place).collect(), needs: needs.collect(), missing, program }
        };
        let steps = started.iter().map(|at| step(*at)).collect();
        let skipped = programs
            .iter()
            .zip(&why)
            .filter_map(|(program, why)| why.clone().map(|why| Skipped { name: program.name.clone(), why }));
        Ok(Self { steps, skipped: skipped.collect() })
    }
}

impl PlanError {
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Unknown { nearest: Some(nearest), .. } => format!("did you mean '{nearest}'?"),
            Self::Unknown { .. } => "see the names with: meshd launch FILE --dry-run".to_owned(),
            Self::Cycle(_) => "remove one of these from 'after'".to_owned(),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => write!(f, "disabled"),
            Self::OtherHost(hosts) => write!(f, "runs on {}", hosts.join(", ")),
            Self::NotChosen => write!(f, "not chosen"),
        }
    }
}

fn why_not(program: &Program, choice: &Choice<'_>, host: &str) -> Option<Why> {
    let named = |names: &[String]| names.contains(&program.name);
    let here = |wanted: &String| {
        let short = host.split('.').next().unwrap_or_default();
        wanted.eq_ignore_ascii_case(host) || wanted.eq_ignore_ascii_case(short)
    };
    match () {
        () if program.disabled => Some(Why::Disabled),
        () if !program.on_host.is_empty() && !program.on_host.iter().any(here) => {
            Some(Why::OtherHost(program.on_host.clone()))
        }
        () if named(choice.except) || !choice.only.is_empty() && !named(choice.only) => Some(Why::NotChosen),
        () => None,
    }
}

/// An order in which each comes after those that it waits for, else as given; or those that go round in a circle.
fn order(after: &[Vec<usize>]) -> Result<Vec<usize>, Vec<usize>> {
    let mut order: Vec<usize> = Vec::with_capacity(after.len());
    while order.len() < after.len() {
        let free = |at: &usize| !order.contains(at) && after[*at].iter().all(|earlier| order.contains(earlier));
        match (0..after.len()).find(free) {
            Some(at) => order.push(at),
            None => {
                // All that are left wait for one that is left: whoever follows them comes round.
                let left = |at: &usize| !order.contains(at);
                let mut way: Vec<usize> = (0..after.len()).find(left).into_iter().collect();
                while let Some(next) = way.last().and_then(|at| after[*at].iter().copied().find(left)) {
                    if let Some(began) = way.iter().position(|at| *at == next) {
                        way.drain(..began);
                        way.push(next);
                        break;
                    }
                    way.push(next);
                }
                return Err(way);
            }
        }
    }
    Ok(order)
}

fn nearest(name: &str, names: &[&str]) -> Option<String> {
    let best = names.iter().map(|known| (strsim::jaro_winkler(name, known), known));
    let best = best.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 >= ALIKE).then(|| (*best.1).to_owned())
}

/// Jaro-Winkler likeness above which a name is worth suggesting.
const ALIKE: f64 = 0.8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::kit::program;

    fn after(name: &str, others: &[&str]) -> Program {
        Program { after: others.iter().map(|name| After::Program((*name).to_owned())).collect(), ..program(name) }
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.steps.iter().map(|step| step.program.name.as_str()).collect()
    }

    #[test]
    fn each_comes_after_those_that_it_waits_for() {
        let programs = vec![after("c", &["b", "a"]), after("d", &[]), after("b", &["a"]), after("a", &[])];
        let plan = Plan::new(programs, &Choice::default(), "here").unwrap();
        assert_eq!(names(&plan), ["d", "a", "b", "c"]);
        assert_eq!(plan.steps[3].after, [2, 1]);
    }

    #[test]
    fn who_waits_for_each_other_is_named() {
        for (programs, circle) in [
            (vec![after("a", &["a"])], &["a", "a"][..]),
            (
                vec![after("x", &["a"]), after("a", &["b"]), after("b", &["c"]), after("c", &["a"])],
                &["a", "b", "c", "a"],
            ),
        ] {
            let circle = circle.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(Plan::new(programs, &Choice::default(), "here"), Err(PlanError::Cycle(circle)));
        }
    }

    #[test]
    fn a_name_that_is_not_there_is_an_error_that_names_the_nearest() {
        let programs = || vec![after("camera", &[]), after("viewer", &["camra"])];
        let error = Plan::new(programs(), &Choice::default(), "here").unwrap_err();
        assert_eq!(error.to_string(), "'after' of viewer names program 'camra', which is not in the file");
        assert_eq!(error.hint(), "did you mean 'camera'?");
        let (only, programs) = (["vewer".to_owned()], vec![program("viewer")]);
        let error = Plan::new(programs, &Choice { only: &only, except: &[] }, "here").unwrap_err();
        assert_eq!(error.to_string(), "--only names program 'vewer', which is not in the file");
    }

    #[test]
    fn what_is_disabled_elsewhere_or_not_chosen_is_skipped() {
        // E-CLI: the matrix of disabled and on_host.
        for (disabled, on_host, why) in [
            (false, &[][..], None),
            (false, &["here"], None),
            (false, &["there", "HERE"], None),
            (false, &["here.lan"], None),
            (false, &["there"], Some(Why::OtherHost(vec!["there".to_owned()]))),
            (true, &[], Some(Why::Disabled)),
            (true, &["here"], Some(Why::Disabled)),
            (true, &["there"], Some(Why::Disabled)),
        ] {
            let on_host: Vec<String> = on_host.iter().map(|host| (*host).to_owned()).collect();
            let one = Program { disabled, on_host, ..program("a") };
            let plan = Plan::new(vec![one, after("b", &["a"])], &Choice::default(), "here.lan").unwrap();
            assert_eq!(plan.skipped.first().map(|skipped| skipped.why.clone()), why);
            let missing = &plan.steps.last().unwrap().missing;
            assert_eq!(missing.is_empty(), why.is_none(), "{missing:?}");
        }
        let programs = || vec![program("a"), program("b"), program("c")];
        let (ab, b) = (["a".to_owned(), "b".to_owned()], ["b".to_owned()]);
        for (only, except, left) in
            [(&ab[..], &[][..], &["a", "b"][..]), (&[], &b, &["a", "c"]), (&ab, &b, &["a"]), (&b, &b, &[])]
        {
            let plan = Plan::new(programs(), &Choice { only, except }, "here").unwrap();
            assert_eq!((names(&plan), plan.skipped.len()), (left.to_vec(), 3 - left.len()));
        }
    }
}
