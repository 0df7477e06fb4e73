//! Generated from `wit/`. The types of `columns` and the log are generated once and shared by the three worlds.
#![allow(missing_docs, unreachable_pub, reason = "generated code")]

pub mod filter {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "tidegate:udf/filter",
        pub_export_macro: true,
        export_macro_name: "export_filter_world",
        generate_all,
    });
}

pub mod transform {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "tidegate:udf/transform",
        pub_export_macro: true,
        export_macro_name: "export_transform_world",
        with: {
            "tidegate:udf/columns@0.1.0": crate::bindings::filter::tidegate::udf::columns,
            "tidegate:udf/log@0.1.0": crate::bindings::filter::tidegate::udf::log,
        },
    });
}

pub mod aggregate {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "tidegate:udf/aggregate",
        pub_export_macro: true,
        export_macro_name: "export_aggregate_world",
        with: {
            "tidegate:udf/columns@0.1.0": crate::bindings::filter::tidegate::udf::columns,
            "tidegate:udf/log@0.1.0": crate::bindings::filter::tidegate::udf::log,
        },
    });
}
