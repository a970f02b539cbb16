//! SQL scripts: parse, plan, run statement by statement.

pub mod limits;
pub mod paths;
pub mod plan;
pub mod run;
pub mod scan;
pub mod script;
pub mod write;
