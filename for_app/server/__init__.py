"""What stands between the network and Gradio: who is answered, under which name, after which login, and for how long.

What a request says is looked at in `for_app.gate`, and what an error says in `for_app.guard`.
"""
