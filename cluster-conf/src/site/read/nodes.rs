//! Reading `[[node]]` and `[controller]`.
//!
//! Owns that every node is listed once, has an address of its own, and that the controller is one of them.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::DeValue;

use super::{Nodes, Reader};
use crate::diagnostics::Problem;
use crate::fields::{Fault, Fields, string};
use crate::hostlist::{self, MAX_NAMES};
use crate::values::is_host_name;

impl Reader<'_> {
    pub(super) fn nodes(&mut self, top: &mut Fields<'_, '_>) -> Nodes {
        let mut nodes = BTreeMap::new();
        let mut places: BTreeMap<String, Range<usize>> = BTreeMap::new();
        for (section_span, mut fields) in top.sections("node", self.problems) {
            let named = fields.take("name").is_some();
            let names = fields.read("name", self.problems, names);
            let address = fields.read("address", self.problems, address);
            self.finish(fields);
            let Some(names) = names else {
                if !named {
                    self.problems.push(
                        Problem::new(section_span, "this [[node]] has no `name`")
                            .help("name = \"n1\", or many at once: name = \"n[1-8]\""),
                    );
                }
                continue;
            };
            if nodes.len() + names.get_ref().len() > MAX_NAMES {
                let message = format!("the file lists more than {MAX_NAMES} nodes");
                self.problems.push(Problem::new(names.span(), message));
                break;
            }
            let address = self.one_address_each(names.get_ref().len(), address);
            for name in names.get_ref() {
                if let Some(first) = places.insert(name.clone(), names.span()) {
                    let problem =
                        Problem::new(names.span(), format!("node `{name}` is listed twice"));
                    // One message per list is enough.
                    self.problems.push(match first == names.span() {
                        true => problem,
                        false => problem.related(first, "here first"),
                    });
                    break;
                }
                nodes.insert(name.clone(), address.as_ref().map(|text| text.replace("%n", name)));
            }
        }
        Nodes(nodes)
    }

    /// Several nodes cannot have the same address.
    fn one_address_each(
        &mut self,
        nodes: usize,
        address: Option<Spanned<String>>,
    ) -> Option<String> {
        let address = address?;
        if nodes > 1 && !address.get_ref().contains("%n") {
            self.problems.push(
                Problem::new(address.span(), format!("{nodes} nodes cannot share one address")).help(
                    "put %n where the node's name belongs, as in \"%n-ib\", or list the nodes one by one",
                ),
            );
            return None;
        }
        Some(address.into_inner())
    }

    /// `listed` is `None` where the file lists no nodes: then nothing is known of the name.
    pub(super) fn controller(
        &mut self,
        top: &mut Fields<'_, '_>,
        listed: Option<&Nodes>,
    ) -> Option<String> {
        let mut fields = top.section("controller", self.problems)?;
        let node = fields.read("node", self.problems, host_name);
        self.finish(fields);
        let node = node?;
        if let Some(nodes) = listed
            && !nodes.contains(node.get_ref())
        {
            let names: Vec<_> = nodes.names().collect();
            let mut list = hostlist::compress(&names);
            if list.len() > 100 {
                list = format!("{} nodes", names.len());
            }
            self.problems.push(
                Problem::new(
                    node.span(),
                    format!("`controller.node`: no [[node]] is named `{}`", node.get_ref()),
                )
                .label(format!("listed: {list}"))
                .help("without [controller], the first node of each job is its controller"),
            );
        }
        Some(node.into_inner())
    }
}

fn names(value: &DeValue<'_>) -> Result<Vec<String>, Fault> {
    let text = string(value)?;
    hostlist::expand(&text).map_err(|error| {
        Fault::new(format!("\"{}\", {error}", text.escape_debug()))
            .help("host names as Slurm writes them: n1, n[1-8], n[01-16],gpu[1-2]")
            .offset(error.at)
    })
}

fn host_name(value: &DeValue<'_>) -> Result<String, Fault> {
    let text = string(value)?;
    if is_host_name(&text) {
        Ok(text)
    } else {
        Err(Fault::new(format!("\"{}\" is not the name of one node", text.escape_debug())))
    }
}

fn address(value: &DeValue<'_>) -> Result<String, Fault> {
    let text = string(value)?;
    let sample = text.replace("%n", "n");
    if is_host_name(&sample) || sample.parse::<std::net::IpAddr>().is_ok() {
        Ok(text)
    } else {
        Err(Fault::new(format!(
            "\"{}\" is neither a host name nor an IP address",
            text.escape_debug()
        ))
        .help("the port is not part of it; see [network]"))
    }
}
