//! FSDP2's parameter groups by architecture: what LLaMA-Factory's rule claims in the model classes of transformers, built on the meta device.

mod support;

use std::collections::BTreeMap;

use serde_json::Value;
use shardwright::{
    core::{DType, Mesh, ModelFacts, ModelMeta, PlanInput, Precision, PrecisionPolicy, TensorMeta, plan_checked},
    fsdp2::Fsdp2,
};

#[derive(Debug)]
struct AsIs;

impl PrecisionPolicy for AsIs {
    fn decide(&self, param: &TensorMeta, _: bool) -> Precision {
        Precision::uniform(param.dtype)
    }
}

/// The parameter group of each parameter.
fn expected(row: &Value) -> BTreeMap<String, (String, usize)> {
    let units = row["units"].as_object().unwrap();
    let params = units.iter().flat_map(|(group, params)| params.as_array().unwrap().iter().map(move |p| (group, p)));
    params
        .map(|(group, p)| (p[0].as_str().unwrap().to_owned(), (group.clone(), usize::try_from(p[1].as_u64().unwrap()).unwrap())))
        .collect()
}

fn planned(row: &Value, params: &BTreeMap<String, (String, usize)>, tied: Option<bool>) -> BTreeMap<String, String> {
    let mut config = serde_json::json!({"model_type": row["model_type"]});
    if let Some(tied) = tied {
        config["tie_word_embeddings"] = tied.into();
    }
    let tensors = params.iter().map(|(name, (_, ndim))| TensorMeta::new(name, DType::F32, vec![2; (*ndim).max(1)]));
    let model = ModelMeta::new(tensors.collect(), ModelFacts::from_config(&config)).unwrap();
    let mesh = Mesh::replicate_shard(1, 2).unwrap();
    let plan = plan_checked(&Fsdp2::default(), &PlanInput::new(&model, &mesh, &AsIs)).unwrap();
    let units = plan.groups.iter().flat_map(|u| u.tensors.iter().map(|&t| (plan.tensors[t].name.to_string(), u.name.clone())));
    units.collect()
}

#[test]
fn units_are_those_of_the_model_classes() {
    let rows = support::read_json(&support::oracle("units.json"));
    let rows = rows.as_array().unwrap();
    assert!(rows.len() > 150, "only {} rows", rows.len());
    let mut wrong = Vec::new();
    for row in rows {
        let params = expected(row);
        let ours = planned(row, &params, row["tied"].as_bool());
        for (name, (group, _)) in &params {
            if ours[name] != *group {
                wrong.push(format!(
                    "{} {} tied={}: {name} is in '{}', should be in '{group}'",
                    row["model_type"], row["model"], row["tied"], ours[name]
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Where `config.json` does not say whether embeddings are tied, the class's default counts.
#[test]
fn an_absent_tie_means_the_classs_default() {
    let rows = support::read_json(&support::oracle("units.json"));
    for row in rows.as_array().unwrap().iter().filter(|row| row["tied"] == row["default_tied"]) {
        let params = expected(row);
        let ours = planned(row, &params, None);
        for (name, (group, _)) in &params {
            assert_eq!(ours[name], *group, "{} {}: {name}", row["model_type"], row["model"]);
        }
    }
}
