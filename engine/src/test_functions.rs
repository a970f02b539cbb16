//! SQL functions for tests of failure, there only with `--conf firesteel.test.functions=true`: they let a test decide when a
//! task fails or stands still, on whichever executor it runs, without guessing at times.
//!
//! All return their first argument. They talk to the test through a directory.
//!
//! - `test_fail(value, 'DIR', n)`: the first `n` batches that come through, in all processes together, fail.
//! - `test_hold(value, key, 'DIR')`: a batch with a row in which `value = key` leaves the file `held-PID` in the directory
//!   and goes on once there is a file `go`.
//! - `test_hold_once(value, key, 'DIR')`: the same, but only the first that comes there stands still.

use datafusion::arrow::array::Array;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{ScalarValue, exec_err};
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub fn all() -> [ScalarUDF; 3] {
    let signature = Signature::any(3, Volatility::Stable);
    [
        ScalarUDF::from(TestFunction { kind: Kind::Fail, signature: signature.clone() }),
        ScalarUDF::from(TestFunction { kind: Kind::Hold, signature: signature.clone() }),
        ScalarUDF::from(TestFunction { kind: Kind::HoldOnce, signature }),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Fail,
    Hold,
    HoldOnce,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TestFunction {
    kind: Kind,
    signature: Signature,
}

impl ScalarUDFImpl for TestFunction {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Fail => "test_fail",
            Kind::Hold => "test_hold",
            Kind::HoldOnce => "test_hold_once",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match arguments.first() {
            Some(first) => Ok(first.clone()),
            None => exec_err!("{} needs three arguments", self.name()),
        }
    }

    fn invoke_with_args(&self, call: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [value, second, third] = call.args.as_slice() else {
            return exec_err!("{} needs three arguments", self.name());
        };
        match self.kind {
            Kind::Fail => fail(&directory(second)?, third)?,
            Kind::Hold => hold(value, second, &directory(third)?, false)?,
            Kind::HoldOnce => hold(value, second, &directory(third)?, true)?,
        }
        Ok(value.clone())
    }
}

fn directory(argument: &ColumnarValue) -> Result<PathBuf> {
    match argument {
        ColumnarValue::Scalar(scalar) if scalar.try_as_str().flatten().is_some() => {
            Ok(PathBuf::from(scalar.try_as_str().flatten().unwrap_or_default()))
        }
        _ => exec_err!("the directory must be a text literal"),
    }
}

fn fail(directory: &Path, times: &ColumnarValue) -> Result<()> {
    let ColumnarValue::Scalar(ScalarValue::Int64(Some(times))) = times else {
        return exec_err!("the number of failures must be a literal");
    };
    for n in 0..*times {
        // Whoever makes the file has the failure.
        if OpenOptions::new().write(true).create_new(true).open(directory.join(format!("failed-{n}"))).is_ok()
        {
            return exec_err!("test_fail fails, {} of {times}", n + 1);
        }
    }
    Ok(())
}

fn hold(value: &ColumnarValue, key: &ColumnarValue, directory: &Path, once: bool) -> Result<()> {
    let ColumnarValue::Scalar(key) = key else { return exec_err!("the key must be a literal") };
    // As text, so that a literal need not have the column's exact type.
    let key = key.to_string();
    let held = match value {
        ColumnarValue::Scalar(value) => value.to_string() == key,
        ColumnarValue::Array(values) => (0..values.len())
            .any(|row| ScalarValue::try_from_array(values, row).is_ok_and(|v| v.to_string() == key)),
    };
    if !held {
        return Ok(());
    }
    if once && OpenOptions::new().write(true).create_new(true).open(directory.join("first")).is_err() {
        return Ok(());
    }
    std::fs::write(directory.join(format!("held-{}", std::process::id())), [])?;
    let go = directory.join("go");
    // Other tasks of this thread must go on, above all the one that hears that this one is cancelled.
    tokio::task::block_in_place(|| {
        while !go.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    Ok(())
}
