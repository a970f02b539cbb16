//! Files that the pages need, under names that change with their content.

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::sync::LazyLock;

const STYLE: &str = include_str!("style.css");
const ICON: &str = include_str!("icon.svg");
/// A year: another content has another name.
const FOREVER: &str = "public, max-age=31536000, immutable";

struct Asset {
    name: String,
    url: String,
    content_type: &'static str,
    content: &'static str,
}

fn asset(stem: &str, extension: &str, content_type: &'static str, content: &'static str) -> Asset {
    let name = format!("{stem}-{:08x}.{extension}", crc32fast::hash(content.as_bytes()));
    Asset { url: format!("/assets/{name}"), name, content_type, content }
}

static STYLE_ASSET: LazyLock<Asset> =
    LazyLock::new(|| asset("style", "css", "text/css; charset=utf-8", STYLE));
static ICON_ASSET: LazyLock<Asset> = LazyLock::new(|| asset("icon", "svg", "image/svg+xml", ICON));

pub fn style_url() -> &'static str {
    &STYLE_ASSET.url
}

pub fn icon_url() -> &'static str {
    &ICON_ASSET.url
}

pub async fn serve(Path(name): Path<String>) -> Response {
    for asset in [&*STYLE_ASSET, &*ICON_ASSET] {
        if asset.name == name {
            let headers = [(header::CONTENT_TYPE, asset.content_type), (header::CACHE_CONTROL, FOREVER)];
            return (headers, asset.content).into_response();
        }
    }
    (StatusCode::NOT_FOUND, "no such asset\n").into_response()
}
