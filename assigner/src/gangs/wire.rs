//! Messages about gangs as bytes: between [`acb_core::gang`] and `acb.proto`.
//!
//! What a peer of another version says that is not understood counts as said nothing of.

use acb_core::Gpu;
use acb_core::gang::{
    GangName, GangOrder, GangRefusal, Limit, LimitOf, Message, Order, Orders, Report, Round,
    Session, Site, Stage, Standing, Step,
};
use acb_wire::v1::{self, GangRefusalCode, GangStage, GangStep};

/// What a node says.
pub fn report(node: &str, report: Report) -> v1::GangReport {
    let gangs = report.state.gangs.into_iter().map(|(name, standing)| {
        let (busy, wanted, served, due) = match standing.stage {
            Stage::Holding { busy, wanted, served, due } => (busy, wanted, served, due),
            _ => (false, false, false, false),
        };
        v1::GangStanding {
            gang: name.0.to_string(),
            size: standing.size,
            members: standing.members,
            waiting: standing.waiting,
            urgent: standing.urgent,
            priority: standing.priority,
            width: standing.width,
            gpus: standing.gpus.iter().map(|gpu| gpu.0).collect(),
            round: standing.round.0,
            stage: stage(standing.stage).into(),
            busy,
            wanted,
            served,
            due,
            left: standing.left,
            away: standing.away,
            refusal: standing.refusal.as_ref().map(refusal),
        }
    });
    v1::GangReport {
        node: node.to_owned(),
        session: report.session.0,
        seq: report.seq,
        heard: report.heard,
        ask: report.ask,
        gpus: report.state.gpus,
        gangs: gangs.collect(),
    }
}

/// How a stage is called.
pub fn stage(stage: Stage) -> GangStage {
    match stage {
        Stage::Out => GangStage::Out,
        Stage::Keeping => GangStage::Keeping,
        Stage::Reachable => GangStage::Reachable,
        Stage::Kept => GangStage::Kept,
        Stage::Holding { .. } => GangStage::Holding,
        Stage::Ending => GangStage::Ending,
    }
}

/// What a node has said.
pub fn from_report(report: v1::GangReport) -> Report {
    let gangs = report.gangs.into_iter().filter_map(|standing| {
        let stage = match standing.stage() {
            GangStage::Unspecified => return None,
            GangStage::Out => Stage::Out,
            GangStage::Keeping => Stage::Keeping,
            GangStage::Reachable => Stage::Reachable,
            GangStage::Kept => Stage::Kept,
            GangStage::Holding => Stage::Holding {
                busy: standing.busy,
                wanted: standing.wanted,
                served: standing.served,
                due: standing.due,
            },
            GangStage::Ending => Stage::Ending,
        };
        let name = GangName::from(standing.gang.as_str());
        Some((
            name,
            Standing {
                size: standing.size,
                members: standing.members,
                waiting: standing.waiting,
                urgent: standing.urgent,
                priority: standing.priority,
                width: standing.width,
                gpus: standing.gpus.into_iter().map(Gpu).collect(),
                round: Round(standing.round),
                stage,
                left: standing.left,
                away: standing.away,
                refusal: standing.refusal.as_ref().and_then(from_refusal),
            },
        ))
    });
    Message {
        session: Session(report.session),
        seq: report.seq,
        heard: report.heard,
        ask: report.ask,
        state: Site { gpus: report.gpus, gangs: gangs.collect() },
    }
}

/// What the controller says.
pub fn orders(order: Order) -> v1::GangOrders {
    let gangs = order.state.into_iter().map(|(name, order)| {
        let (round, step, wanted) = match order.step {
            None => (0, GangStep::Unspecified, false),
            Some((round, Step::Keep)) => (round.0, GangStep::Keep, false),
            Some((round, Step::Firm)) => (round.0, GangStep::Firm, false),
            Some((round, Step::Go { wanted })) => (round.0, GangStep::Go, wanted),
            Some((round, Step::End)) => (round.0, GangStep::End, false),
        };
        v1::GangOrder {
            gang: name.0.to_string(),
            step: step.into(),
            round,
            wanted,
            priority: order.priority,
            most: order.most.as_ref().map(|(most, _)| *most),
            refusal: order.most.map(|(_, reason)| refusal(&reason)),
            over: order.over,
        }
    });
    v1::GangOrders {
        session: order.session.0,
        seq: order.seq,
        heard: order.heard,
        ask: order.ask,
        gangs: gangs.collect(),
    }
}

/// What the controller has said.
pub fn from_orders(orders: v1::GangOrders) -> Order {
    let gangs = orders.gangs.into_iter().map(|order| {
        let round = Round(order.round);
        let step = match order.step() {
            GangStep::Unspecified => None,
            GangStep::Keep => Some((round, Step::Keep)),
            GangStep::Firm => Some((round, Step::Firm)),
            GangStep::Go => Some((round, Step::Go { wanted: order.wanted })),
            GangStep::End => Some((round, Step::End)),
        };
        let reason = order.refusal.and_then(|it| from_refusal(&it));
        let most = order.most.zip(reason);
        let name = GangName::from(order.gang.as_str());
        (name, GangOrder { step, priority: order.priority, most, over: order.over })
    });
    Message {
        session: Session(orders.session),
        seq: orders.seq,
        heard: orders.heard,
        ask: orders.ask,
        state: gangs.collect::<Orders>(),
    }
}

fn refusal(reason: &GangRefusal) -> v1::GangRefusal {
    let mut text = String::new();
    let (code, wanted, there) = match reason {
        GangRefusal::SizesDiffer { size, others } => (GangRefusalCode::SizesDiffer, *size, *others),
        GangRefusal::Full { size } => (GangRefusalCode::Full, *size, *size),
        GangRefusal::LargerThanNode { wanted, gpus } => {
            (GangRefusalCode::LargerThanNode, *wanted, *gpus)
        }
        GangRefusal::LargerThanJob { wanted, gpus } => {
            (GangRefusalCode::LargerThanJob, *wanted, *gpus)
        }
        GangRefusal::BeyondLimit { wanted, limit } => {
            limit.name.as_ref().clone_into(&mut text);
            let code = match limit.of {
                LimitOf::Tenant => GangRefusalCode::BeyondTenant,
                LimitOf::Queue => GangRefusalCode::BeyondQueue,
            };
            (code, *wanted, limit.most)
        }
        GangRefusal::Member(reason) => {
            reason.as_ref().clone_into(&mut text);
            (GangRefusalCode::Member, 0, 0)
        }
    };
    v1::GangRefusal { code: code.into(), wanted, there, text }
}

fn from_refusal(refusal: &v1::GangRefusal) -> Option<GangRefusal> {
    let (wanted, there) = (refusal.wanted, refusal.there);
    let text = || refusal.text.as_str().into();
    let limit = |of| Limit { of, name: text(), most: there };
    Some(match refusal.code() {
        GangRefusalCode::Unspecified => return None,
        GangRefusalCode::SizesDiffer => GangRefusal::SizesDiffer { size: wanted, others: there },
        GangRefusalCode::Full => GangRefusal::Full { size: wanted },
        GangRefusalCode::LargerThanNode => GangRefusal::LargerThanNode { wanted, gpus: there },
        GangRefusalCode::LargerThanJob => GangRefusal::LargerThanJob { wanted, gpus: there },
        GangRefusalCode::BeyondTenant => {
            GangRefusal::BeyondLimit { wanted, limit: limit(LimitOf::Tenant) }
        }
        GangRefusalCode::BeyondQueue => {
            GangRefusal::BeyondLimit { wanted, limit: limit(LimitOf::Queue) }
        }
        GangRefusalCode::Member => GangRefusal::Member(text()),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn reports_arrive_as_they_were_sent() {
        let stages = [
            Stage::Out,
            Stage::Keeping,
            Stage::Reachable,
            Stage::Kept,
            Stage::Holding { busy: true, wanted: false, served: true, due: false },
            Stage::Holding { busy: false, wanted: true, served: false, due: true },
            Stage::Ending,
        ];
        let gangs = stages.iter().enumerate().map(|(at, stage)| {
            let standing = Standing {
                size: 4,
                members: 2,
                waiting: 1,
                urgent: true,
                priority: -7,
                width: 3,
                gpus: BTreeSet::from([Gpu(0), Gpu(5)]),
                round: Round(9),
                stage: *stage,
                left: 1,
                away: 6,
                refusal: Some(GangRefusal::Member("why".into())),
            };
            (GangName::from(format!("g{at}").as_str()), standing)
        });
        let site = Site { gpus: Some(8), gangs: gangs.collect() };
        let sent = Message { session: Session(3), seq: 5, heard: 2, ask: true, state: site };
        assert_eq!(from_report(report("n1", sent.clone())), sent);
    }

    #[test]
    fn orders_arrive_as_they_were_sent() {
        let steps = [
            Step::Keep,
            Step::Firm,
            Step::Go { wanted: true },
            Step::Go { wanted: false },
            Step::End,
            Step::End,
            Step::End,
        ];
        let limit = |of| Limit { of, name: "name".into(), most: 2 };
        let reasons = [
            GangRefusal::SizesDiffer { size: 2, others: 3 },
            GangRefusal::Full { size: 2 },
            GangRefusal::LargerThanNode { wanted: 4, gpus: 2 },
            GangRefusal::LargerThanJob { wanted: 9, gpus: 8 },
            GangRefusal::BeyondLimit { wanted: 3, limit: limit(LimitOf::Tenant) },
            GangRefusal::BeyondLimit { wanted: 3, limit: limit(LimitOf::Queue) },
            GangRefusal::Member("why".into()),
        ];
        let mut state: Orders = steps
            .into_iter()
            .zip(reasons)
            .enumerate()
            .map(|(at, (step, reason))| {
                let step = Some((Round(at as u64), step));
                let order = GangOrder { step, priority: 3, most: Some((1, reason)), over: true };
                (GangName::from(format!("g{at}").as_str()), order)
            })
            .collect();
        let waits = GangOrder { step: None, priority: 0, most: None, over: false };
        state.insert(GangName::from("waits"), waits);
        let sent = Message { session: Session(3), seq: 5, heard: 2, ask: false, state };
        assert_eq!(from_orders(orders(sent.clone())), sent);
    }
}
