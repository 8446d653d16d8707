"""The server action `live_snapshot`, and the router by which one line of api-paste.ini switches it on.

    [app:osapi_compute_app_v21]
    paste.app_factory = liveclone_nova.api:APIRouter.factory

Without the line Nova knows no such action: 400, as for any other word. With it the action works in every microversion, and
answers as `createImage` does there: a Location before 2.45, from then on the image's id.
"""

from __future__ import annotations

from typing import Any, NoReturn

import nova.conf
import webob
from nova import exception
from nova.api import validation
from nova.api.openstack import api_version_request, common, wsgi
from nova.api.openstack.compute import routes
from nova.api.openstack.compute.schemas import servers as server_schemas
from nova.api.validation import parameter_types
from nova.image import glance
from webob import exc

from liveclone_nova import compute_api, exceptions, policies, properties, versions

CONF = nova.conf.CONF
ACTION = compute_api.ACTION

REQUEST = {
    "type": "object",
    "properties": {
        ACTION: {
            "type": "object",
            "properties": {"name": parameter_types.name, "metadata": parameter_types.metadata},
            "required": ["name"],
            "additionalProperties": False,
        }
    },
    "required": [ACTION],
    "additionalProperties": False,
}


@validation.validated
class LiveSnapshotController(wsgi.Controller):
    """One action; what it does is in `compute_api`."""

    def __init__(self) -> None:
        super().__init__()
        self.compute_api = compute_api.API()

    @wsgi.response(202)
    @wsgi.expected_errors((400, 403, 404, 409))
    @wsgi.action(ACTION)
    @validation.schema(REQUEST)
    @validation.response_body_schema(server_schemas.create_image_response, "2.0", "2.44")
    @validation.response_body_schema(server_schemas.create_image_response_v245, "2.45")
    def _live_snapshot(self, req: wsgi.Request, id: str, body: dict[str, Any]) -> Any:
        """Take a live snapshot of a server."""
        context = req.environ["nova.context"]
        instance = common.get_instance(self.compute_api, context, id)
        context.can(policies.CREATE, target={"project_id": instance.project_id})
        entity = body[ACTION]
        metadata = entity.get("metadata", {})
        if not api_version_request.is_supported(req, "2.39"):  # from there on Glance alone counts them
            common.check_img_metadata_properties_quota(context, metadata)
        try:
            image = self.compute_api.live_snapshot(
                context, instance, common.normalize_name(entity["name"]), extra_properties=metadata
            )
        except exception.NovaException as error:
            _answer(error, id)
        if api_version_request.is_supported(req, "2.45"):
            return {"image_id": image["id"]}
        response = webob.Response(status_int=202)
        response.headers["Location"] = glance.API().generate_image_url(str(image["id"]), context)
        return response


def _answer(error: exception.NovaException, server_id: str) -> NoReturn:
    """Raise what the user is told; what is nobody's fault but ours stays a 500."""
    if isinstance(error, exception.InstanceIsLocked | exceptions.LiveSnapshotNotPossible):
        raise exc.HTTPConflict(explanation=error.format_message())
    if isinstance(error, exception.InstanceInvalidState):
        common.raise_http_conflict_for_instance_invalid_state(error, ACTION, server_id)
    if isinstance(error, exception.ServiceUnavailable | exception.InstanceNotReady):
        raise exc.HTTPConflict(explanation=f"The host of server {server_id} is down.")
    if isinstance(error, exception.OverQuota):
        raise exc.HTTPForbidden(explanation=error.format_message())
    if isinstance(error, exception.Invalid):
        raise exc.HTTPBadRequest(explanation=error.format_message())
    raise error


class APIRouter(routes.APIRouterV21):
    """Nova's router with the action. Built once for each of /v2 and /v2.1."""

    def __init__(self, custom_routes: Any = None) -> None:
        versions.check_nova()
        super().__init__(custom_routes)
        policies.register()
        _keep_from_heirs(properties.TIES)
        controller = LiveSnapshotController()
        for resource in self._find_resources("/servers/{id}/action"):
            resource.register_subcontroller_actions(controller)
        for resource in self._find_resources("/servers"):
            resource.controller.compute_api = controller.compute_api  # by which it creates servers

    def _find_resources(self, path: str) -> list[wsgi.Resource]:
        """Return what answers at a path, below a project's id and without; one that answers to two methods is there once."""
        found = {
            id(route.defaults["controller"]): route.defaults["controller"]
            for route in self.map.matchlist
            if route.routepath.endswith(path) and "controller" in route.defaults
        }
        if not found:
            raise RuntimeError(f"this Nova has no route {path}")
        return list(found.values())


def _keep_from_heirs(names: tuple[str, ...]) -> None:
    """Let no later snapshot of a clone inherit what ties its image to a memory image.

    Nova copies the properties of a server's image to each image made of the server. A disk written since, tied to the old
    memory, would be a corrupt machine.
    """
    kept = CONF.non_inheritable_image_properties
    missing = [name for name in names if name not in kept]
    if missing:
        CONF.set_override("non_inheritable_image_properties", [*kept, *missing])
