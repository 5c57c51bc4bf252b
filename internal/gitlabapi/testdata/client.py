"""Drives the API as python-gitlab does, and fails loudly where it would.

Usage: client.py URL TOKEN, against a server with the project team/site that
holds one commit.
"""

import base64
import datetime
import sys
import warnings
from urllib.parse import quote

import gitlab

warnings.simplefilter("error")  # a Link to another host is a warning
warnings.simplefilter("ignore", ResourceWarning)
url, token = sys.argv[1:]

gl = gitlab.Gitlab(url, private_token=token)
gl.auth()
assert gl.user.username == "root" and gl.user.is_admin, gl.user
assert gl.user.web_url.startswith(url), gl.user.web_url
version, revision = gl.version()
assert version.split(".")[0].isdigit() and revision, (version, revision)
gitlab.Gitlab(url, oauth_token=token).auth()

# Lists: by page numbers, by Link, by keyset.
group = gl.groups.create({"name": "Py", "path": "py", "visibility": "private"})
made = [gl.projects.create({"name": f"P {i}", "namespace_id": group.id}) for i in range(7)]
assert made[0].path_with_namespace == "py/p-0", made[0]
paged = group.projects.list(iterator=True, per_page=3, order_by="id", sort="asc")
assert paged.total == 7 and paged.total_pages == 3 and paged.per_page == 3 and paged.next_page == 2, vars(paged)
assert [p.id for p in paged] == [p.id for p in made]
assert len(gl.projects.list(get_all=True, search="P ", per_page=2)) >= 7
keyset = gl.projects.list(iterator=True, pagination="keyset", order_by="id", sort="asc", per_page=3)
assert [p.id for p in keyset][-7:] == [p.id for p in made]
assert gl.groups.list(search="nothing-like-this") == []

# One project, by path and by id, changed and deleted.
project = gl.projects.get("py/p-0")
assert project.id == made[0].id and project.default_branch == "main" and project.empty_repo
project.description = "changed"
project.save()
assert gl.projects.get(project.id).description == "changed"
assert project.archive() is None and project.unarchive() is None
project.delete()
try:
    gl.projects.get(project.id)
    raise SystemExit("a deleted project is still there")
except gitlab.exceptions.GitlabGetError as e:
    assert e.response_code == 404 and "404 Project Not Found" in e.error_message, e
try:
    gl.projects.create({"name": "again", "path": "p-1", "namespace_id": group.id})
    raise SystemExit("a path was given twice")
except gitlab.exceptions.GitlabCreateError as e:
    assert e.response_code == 400 and "has already been taken" in str(e), e
try:
    gitlab.Gitlab(url, private_token="glpat-wrong").auth()
    raise SystemExit("a wrong token was taken")
except gitlab.exceptions.GitlabAuthenticationError as e:
    assert e.response_code == 401, e

# Code.
site = gl.projects.get("team/site")
name = ".gitlab/agents/prod/config.yaml"
file = site.files.get(file_path=name, ref="main")
assert file.decode() == b"flux: {}\n", file
assert base64.b64decode(file.content) == b"flux: {}\n"
assert site.files.raw(file_path=name, ref="v1") == b"flux: {}\n"
headers = gl.http_head(f"/projects/{site.encoded_id}/repository/files/{quote(name, safe='')}", query_data={"ref": "main"})
assert headers["X-Gitlab-File-Path"] == name, headers
head = site.commits.list(get_all=False)[0]
assert site.commits.get(head.id).title == "First"
assert {b.name for b in site.branches.list()} == {"main", "feature/x"}
assert site.branches.get("feature/x").commit["id"] == head.id
assert {t.name for t in site.tags.list()} == {"v1", "light"}
assert [e["path"] for e in site.repository_tree(recursive=True, get_all=True)][-1] == name

# People and tokens.
user = gl.users.create({"username": "monty", "name": "Monty", "email": "m@example.com", "reset_password": True})
assert gl.users.list(username="MONTY")[0].id == user.id
member = site.members.create({"user_id": user.id, "access_level": gitlab.const.DEVELOPER_ACCESS})
assert site.members.get(user.id).access_level == 30 and site.members_all.get(user.id).username == "monty"
member.access_level = gitlab.const.MAINTAINER_ACCESS
member.save()
member.delete()
deploy = site.deploytokens.create({"name": "pull", "scopes": ["read_repository"], "expires_at": "", "username": ""})
assert deploy.token.startswith("gldt-") and site.deploytokens.list()[0].id == deploy.id
deploy.delete()
until = (datetime.date.today() + datetime.timedelta(days=30)).isoformat()
access = site.access_tokens.create({"name": "ci", "scopes": ["api"], "expires_at": until})
assert access.token.startswith("glpat-") and access.expires_at == until, access
assert gitlab.Gitlab(url, private_token=access.token).projects.get("team/site").id == site.id
access.delete()
personal = user.personal_access_tokens.create({"name": "p", "scopes": ["read_api"]})
assert personal.user_id == user.id and personal.active
gl.personal_access_tokens.delete(personal.id)
assert gl.personal_access_tokens.list(user_id=user.id, state="active") == []
protected = site.protectedbranches.create({"name": "stable/*", "push_access_level": 40})
assert site.protectedbranches.get("stable/*").push_access_levels[0]["access_level"] == 40
protected.delete()
assert gl.namespaces.list(search="monty")[0].kind == "user"

# Agents, which this version of python-gitlab does not know.
agents = f"/projects/{site.encoded_id}/cluster_agents"
agent = gl.http_post(agents, post_data={"name": "prod"})
assert gl.http_list(agents, iterator=False)[0]["id"] == agent["id"]
secret = gl.http_post(f"{agents}/{agent['id']}/tokens", post_data={"name": "one"})
assert secret["token"].startswith("glagent-")
gl.http_delete(f"{agents}/{agent['id']}")

group.delete()
print("ok")
