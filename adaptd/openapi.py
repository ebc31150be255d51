"""The OpenAPI 3.1 document of the API, made for the names that the configuration gives the fields."""

from typing import Any

import adaptd
from adaptd.commands import ACTIONS
from adaptd.config import Config

Schema = dict[str, Any]

SCALAR: Schema = {"type": ["number", "string", "boolean", "null"]}
KEY: Schema = {"type": ["string", "number", "boolean"], "description": "At most 1,024 bytes, as it is sent."}
NUMBER_OR_NULL: Schema = {"type": ["number", "null"]}
COUNT: Schema = {"type": "integer", "minimum": 0}

WORDS = {
    400: "The body is no JSON.",
    401: "The bearer token is missing or wrong.",
    403: "Calls that write are off without a token, or the call comes from another origin.",
    404: "There is no such learner or action.",
    408: "The body came too slowly.",
    409: "It cannot be done as things stand.",
    413: "The body is too long.",
    415: "The body must be application/json.",
    422: "A record or a parameter cannot be used; nothing was taken in.",
    429: "Too many calls.",
    503: "The daemon is busy or stopping, or its disk refuses; nothing was taken in.",
    504: "No answer in time; it may still be taken in.",
}
ANYWHERE = (401, 403, 429, 503)
BODY = (400, 408, 413, 415, 422, 504)


def document(config: Config) -> Schema:
    """The whole document."""
    paths = {
        "/api/v1/status": {"get": reading("status", "What the daemon does right now.", "Status")},
        "/api/v1/learners": {"get": reading("learners", "Every learner as it stands.", "Learners")},
        "/api/v1/journal": {
            "get": reading(
                "journal",
                "What was decided, oldest first.",
                "Journal",
                [
                    parameter("last", "At most so many entries, the newest.", 1, 1000, 100),
                    parameter("since", "Only entries after this number.", 0, 2**62, 0),
                    {"name": "kind", "in": "query", "schema": {"type": "string"},
                     "description": "Only entries of this kind, for example drift_detected."},
                ],
            )
        },
        "/api/v1/history": {
            "get": reading(
                "history",
                "Figures of the last 24 hours.",
                "History",
                [
                    {"name": "since", "in": "query", "description": "Seconds since 1970.",
                     "schema": {"type": "number", "minimum": 0, "maximum": 2**53, "default": 0}},
                    parameter("points", "At most so many points.", 2, 5000, 600),
                ],
            )
        },
        "/api/v1/predict": {"post": rows("predict", predict_record(config), (
            "Predict. A record without an id is answered and forgotten. When any of the records has an id, "
            "all are taken in like rows of the stream, in order, and wait for their labels."))},
        "/api/v1/learn": {"post": rows("learn", learn_record(config), (
            "Predict, then learn, records that bring their label."))},
        "/api/v1/label": {"post": rows("label", label_record(config), (
            "Bring the labels of records that were predicted with an id, here or in the stream."))},
        "/api/v1/checkpoint": {"post": call(
            "checkpoint", "Save a checkpoint now.", 200, "Checkpoint", (409, 504))},
        "/api/v1/reload": {"post": call("reload", (
            "Read the configuration anew. What can be taken live is, at the next control point; if anything "
            "else has changed all of it is refused, and the old one goes on."), 200, "Changed", (422, 504))},
    }  # fmt: skip
    names = sorted(config.pool.learners) or ["linear"]
    for action, text in ACTIONS.items():
        operation = call(action, f"{text} At the next control point.", 202, "Accepted", (404, 409, 504))
        operation["parameters"] = [
            {"name": "name", "in": "path", "required": True, "description": "The learner.",
             "schema": {"type": "string", "minLength": 1, "examples": names}}
        ]  # fmt: skip
        paths[f"/api/v1/learners/{{name}}/{action}"] = {"post": operation}
    result: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "adaptd",
            "version": adaptd.__version__,
            "description": "Predictions that learn from a stream, and the daemon that makes them.",
        },
        "paths": paths,
        "components": {"schemas": schemas()},
    }
    if config.http.token_file:
        result["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        result["security"] = [{"token": []}]
    return result


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def content(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def responses(status: int, name: str, faults: tuple[int, ...]) -> Schema:
    found: Schema = {str(status): {"description": "Done.", "content": content(reference(name))}}
    for code in sorted({*faults, *ANYWHERE}):
        found[str(code)] = {"description": WORDS[code], "content": content(reference("Error"))}
    return found


def reading(identifier: str, text: str, name: str, parameters: list[Schema] | None = None) -> Schema:
    return {
        "operationId": identifier,
        "summary": text,
        "parameters": parameters or [],
        "responses": responses(200, name, (422,) if parameters else ()),
    }


def call(identifier: str, text: str, status: int, name: str, faults: tuple[int, ...]) -> Schema:
    return {"operationId": identifier, "summary": text, "responses": responses(status, name, faults)}


def rows(identifier: str, record: Schema, text: str) -> Schema:
    body = {"anyOf": [record, {"type": "array", "items": record, "minItems": 1}]}
    return {
        "operationId": identifier,
        "summary": text,
        "requestBody": {"required": True, "content": content(body)},
        "responses": responses(200, "Predictions", BODY),
    }


def parameter(name: str, text: str, low: int, high: int, default: int) -> Schema:
    schema = {"type": "integer", "minimum": low, "maximum": high, "default": default}
    return {"name": name, "in": "query", "description": text, "schema": schema}


# Records: the same form as on stdin.


def predict_record(config: Config) -> Schema:
    return with_features(config, {config.fields.target: {"type": "null"}}, [])


def learn_record(config: Config) -> Schema:
    return with_features(config, {config.fields.target: KEY}, [config.fields.target])


def label_record(config: Config) -> Schema:
    fields = config.fields
    return {
        "type": "object",
        "properties": special(config) | {fields.id: KEY, fields.target: KEY},
        "required": [fields.id, fields.target],
        "additionalProperties": False,
    }


def special(config: Config) -> Schema:
    """What the fields that are no features may be."""
    fields = config.fields
    found: Schema = {name: {} for name in (*fields.ignore, *fields.echo, fields.time) if name}
    if fields.weight:
        found[fields.weight] = {"type": ["number", "null"], "minimum": 0, "maximum": 1e299}
    return found


def with_features(config: Config, label: Schema, required: list[str]) -> Schema:
    fields = config.fields
    known = special(config) | {fields.id: {**KEY, "type": ["string", "number", "boolean", "null"]}}
    known |= label
    flat: Schema = {
        "type": "object",
        "description": "Features beside the id.",
        "properties": known,
        "required": required,
        "additionalProperties": SCALAR,
        # At least one name that is none of those above.
        "not": {"propertyNames": {"enum": sorted(known)}},
    }
    if not fields.features:
        return flat
    nested = {
        "type": "object",
        "description": "Features in an object of their own; other fields are passed over.",
        "properties": known | {fields.features: {"type": "object", "additionalProperties": SCALAR}},
        "required": [*required, fields.features],
    }
    return {"anyOf": [nested, flat]}


# Replies.


def schemas() -> Schema:
    text: Schema = {"type": "string"}
    prediction = thing(
        {"prediction": SCALAR, "learner": text, "id": SCALAR, "row": COUNT,
         "proba": {"type": "object", "additionalProperties": {"type": "number"}},
         "contributions": {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
         "bias": NUMBER_OR_NULL, "against": SCALAR,
         "interval": {"type": ["array", "null"], "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
         "classes": {"type": "array", "items": SCALAR}},
        ["prediction", "learner"],
    )  # fmt: skip
    learner = thing(
        {"name": text, "kind": text, "is_champion": {"type": "boolean"}, "frozen": {"type": "boolean"},
         "set_aside": text, "weight": NUMBER_OR_NULL, "loss": NUMBER_OR_NULL,
         "scores": {"type": "object", "additionalProperties": NUMBER_OR_NULL},
         "learning_rate": NUMBER_OR_NULL, "rate_scale": NUMBER_OR_NULL, "gradient_norm": NUMBER_OR_NULL,
         "step_norm": NUMBER_OR_NULL, "state_bytes": COUNT, "about": text}
    )  # fmt: skip
    entry = thing(
        {"seq": COUNT, "row": COUNT, "kind": text, "payload": {"type": "object"}, "wall": {"type": "number"}}
    )
    status = thing(
        {"version": text, "task": text, "ready": {"type": "boolean"}, "uptime_seconds": {"type": "number"},
         "rows": COUNT, "predictions": COUNT, "labels": COUNT, "rows_per_second": NUMBER_OR_NULL,
         "champion": {"type": ["string", "null"]}, "speaker": text, "scores": {"type": "object"},
         "student": {"type": ["object", "null"], "additionalProperties": NUMBER_OR_NULL},
         "coverage": {"type": ["object", "null"], "additionalProperties": NUMBER_OR_NULL},
         "loss": NUMBER_OR_NULL, "drifts": COUNT, "warnings": COUNT, "switches": COUNT,
         "covariate_shifts": COUNT, "unlabelled_drifts": COUNT, "expected_accuracy": {"type": "object"},
         "concepts": COUNT, "recalls": COUNT,
         "rejects": {"type": "object", "additionalProperties": COUNT}, "label_buffer": {"type": "object"},
         "label_delay_rows": NUMBER_OR_NULL, "checkpoint": {"type": "object"}, "source": {"type": "object"},
         "sink": {"type": "object"}, "stopped_by": text}
    )  # fmt: skip
    return {
        "Error": thing({"error": text, "faults": {"type": "array", "items": text}}, ["error"]),
        "Predictions": thing(
            {"predictions": {"type": "array", "items": prediction},
             "rejected": {"type": "array", "items": thing({"reason": text, "detail": text})}}
        ),
        "Accepted": thing({"accepted": {"const": True}, "seq": COUNT, "takes_effect": text}),
        "Checkpoint": thing({"number": COUNT, "path": text, "bytes": COUNT, "seconds": {"type": "number"}}),
        "Changed": thing({"changed": {"type": "array", "items": text}}),
        "Learners": thing({"learners": {"type": "array", "items": learner}}),
        "Journal": thing({"entries": {"type": "array", "items": entry}}),
        "History": thing(
            {"learners": {"type": "array", "items": text},
             "points": {"type": "array", "items": {"type": "object"}}}
        ),
        "Status": status,
    }  # fmt: skip


def thing(properties: Schema, required: list[str] | None = None) -> Schema:
    """An object; all its properties are always there unless `required` names those that are."""
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties) if required is None else required,
    }
